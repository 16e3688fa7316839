"""Matryoshka embeddings: a vector's first components are a smaller vector (https://arxiv.org/abs/2205.13147)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def truncate(vectors: ArrayLike, dimensions: int) -> NDArray[np.float32]:
    """Cut Matryoshka embeddings to their first components and restore unit length.

    Args:
        vectors: shape (..., d), of any length.
        dimensions: how many leading components to keep, 1 to d.

    Returns:
        float32 array, shape (..., dimensions), unit length. A head that is all zeros has no direction and stays zero.

    Raises:
        TypeError: dimensions is not an integer.
        ValueError: dimensions is out of range, or vectors is a single number.
    """
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim == 0:
        raise ValueError("vectors must have at least one axis, got a single number")
    dimensions = as_integer("dimensions", dimensions)
    full = array.shape[-1]
    if not 1 <= dimensions <= full:
        raise ValueError(f"dimensions must be between 1 and {full}, got {dimensions}")
    head = array[..., :dimensions]
    norms = np.linalg.norm(head, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(head, norms, out=np.zeros_like(head), where=norms != 0)
    return unit


def as_integer(name: str, value: Any) -> int:
    """Read a setting that has to be a whole number, numpy's integers included.

    Args:
        name: the setting's name, for the message.
        value: what the caller gave.

    Returns:
        The value as an int.

    Raises:
        TypeError: it is not an integer (True and False are not).
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    return int(value)
