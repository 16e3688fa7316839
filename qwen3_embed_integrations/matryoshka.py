"""Matryoshka embeddings: a vector's first components are a smaller vector (https://arxiv.org/abs/2205.13147).

Cutting them, and searching a large index by its small vectors first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import faiss
    from numpy.typing import ArrayLike, NDArray

SEARCH_DIMENSIONS = 256
"""Dimensions of the first stage: those with which the models' authors search a large index."""


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


def two_stage_index(
    dimensions: int,
    search_dimensions: int | None = None,
    *,
    oversampling: int = 12,
    ef_search: int = 192,
    neighbors: int = 48,
    ef_construction: int = 200,
    with_ids: bool = False,
) -> faiss.Index:
    """Make an empty FAISS index that finds candidates by small vectors and ranks them by the full ones.

    The first stage is an HNSW graph (https://arxiv.org/abs/1603.09320) over the cut and re-normalised vectors in 8-bit
    codes, the second the full vectors in float16. It needs no training and is a `faiss.Index` of FAISS's own parts,
    which FAISS writes, reads and pickles. Its scores are inner products: cosines of unit vectors, higher is
    better. Vectors can be added at any time, but not removed.

    Thousands of equal or nearly equal vectors would tear a graph apart; its `add` sets them apart from the others, in
    the first stage alone. An index that FAISS itself read adds without that: read it with `load_index`. FAISS's
    IndexIDMap adds without that too: give `with_ids` in its stead.

    Args:
        dimensions: components of the vectors that are added, all of unit length.
        search_dimensions: components of the first stage, 1 to dimensions; fewer are faster and find less. From 32 on
            the last of them tell crowds of equal vectors from the others. None for 256, or all where there are no more.
        oversampling: candidates that are ranked by their full vectors, as a multiple of the number asked for.
        ef_search: breadth of the search in the graph; more is slower and finds more.
        neighbors: links of a node in the graph; more take memory (8 bytes each) and find more.
        ef_construction: breadth of the search when a vector is added; more is slower and finds more later.
        with_ids: whether rows carry ids of their own, as those that Haystack's store gives to `add_with_ids`.

    Returns:
        The index; `add` and `search` take float32 arrays, shape (n, dimensions).

    Raises:
        ImportError: FAISS is not installed.
        TypeError: an argument is not an integer.
        ValueError: an argument is out of range.
    """
    dimensions = as_integer("dimensions", dimensions)
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, got {dimensions}")
    if search_dimensions is None:
        search_dimensions = min(dimensions, SEARCH_DIMENSIONS)
    search_dimensions = as_integer("search_dimensions", search_dimensions)
    if not 1 <= search_dimensions <= dimensions:
        raise ValueError(f"search_dimensions must be between 1 and dimensions ({dimensions}), got {search_dimensions}")
    sizes = {
        "oversampling": oversampling,
        "ef_search": ef_search,
        "neighbors": neighbors,
        "ef_construction": ef_construction,
    }
    for name, size in sizes.items():
        least = 2 if name == "neighbors" else 1
        if as_integer(name, size) < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")
    import_faiss()
    from qwen3_embed_integrations.two_stage import TwoStageIdMap, TwoStageIndex

    index = TwoStageIndex(dimensions, search_dimensions, neighbors)
    index.graph.hnsw.efSearch = ef_search
    index.graph.hnsw.efConstruction = ef_construction
    index.k_factor = oversampling
    return TwoStageIdMap(index) if with_ids else index


def import_faiss() -> Any:
    """Import FAISS.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError("searching needs FAISS: pip install 'qwen3-embed-integrations[faiss]'") from error
    return faiss
