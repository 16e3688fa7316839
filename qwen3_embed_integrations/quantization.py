"""Vectors in int8 or single bits, for stores that take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Precision = Literal["int8", "uint8", "binary", "ubinary"]
PRECISIONS: tuple[Precision, ...] = ("int8", "uint8", "binary", "ubinary")

_LEVELS = 256
_OFFSETS = {"int8": 128, "uint8": 0, "binary": 128, "ubinary": 0}


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Turns vectors into codes by sentence-transformers' `quantize_embeddings`, the same way in every call.

    That function, left alone, takes the ranges of int8 from the vectors of each call, so that today's codes don't fit
    yesterday's. Here they come from a sample, once, and travel with the quantizer (by pickle, or by `ranges`).

    Attributes:
        precision: "int8" or "uint8", a byte a dimension; "binary" (as int8) or "ubinary" (as uint8), a bit a dimension.
        ranges: float32 array, shape (2, d): the least and the greatest of each component. None for single bits.

    Example:
        >>> from qwen3_embed_integrations import Qwen3Encoder
        >>> from qwen3_embed_integrations.quantization import Quantizer
        >>> encoder = Qwen3Encoder("tiny")
        >>> texts = [f"The number {number}." for number in range(200)]
        >>> vectors = encoder.encode_documents(texts)
        >>> quantizer = Quantizer.calibrated(vectors, "int8")
        >>> codes = quantizer.quantize(vectors)
        >>> codes.shape, codes.nbytes * 4 == vectors.nbytes
        ((200, 256), True)
        >>> int(quantizer.scores(encoder.encode_documents(["The number 7."]), codes).argmax())
        7
    """

    precision: Precision
    ranges: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: the precision is unknown, or the ranges don't fit it.
        """
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self._is_binary != (self.ranges is None):
            raise ValueError(f"{self.precision} {'has no ranges' if self._is_binary else 'needs ranges'}")
        if self.ranges is not None and (self.ranges.ndim != 2 or len(self.ranges) != 2):
            raise ValueError(f"ranges must have shape (2, d), got {self.ranges.shape}")

    @classmethod
    def calibrated(cls, sample: ArrayLike, precision: Precision = "int8") -> Quantizer:
        """Take the ranges from a sample.

        Args:
            sample: vectors like those to come, shape (n, d), some thousands; of no account for single bits.
            precision: what the codes are.

        Returns:
            The quantizer.

        Raises:
            ValueError: the precision is unknown, or the sample has fewer than two vectors.
        """
        array = _as_matrix("sample", sample)
        if precision not in ("int8", "uint8"):
            return cls(precision)
        if len(array) < 2:
            raise ValueError(f"the sample must have at least 2 vectors, got {len(array)}")
        return cls(precision, np.stack([array.min(axis=0), array.max(axis=0)]))

    def quantize(self, vectors: ArrayLike) -> NDArray[Any]:
        """Turn vectors into codes; a component outside the ranges takes the code at their end.

        Args:
            vectors: shape (n, d).

        Returns:
            int8 or uint8 array, shape (n, d), or (n, d / 8) rounded up for single bits.

        Raises:
            ValueError: the vectors have another shape, or other dimensions than the sample.
        """
        from sentence_transformers.util import quantize_embeddings

        array = self._checked(vectors)
        # sentence-transformers before 6 lets what is out of range wrap around, and rounds signed codes another way: it
        # gets values within the ranges, whole bytes, and the name of the unsigned codes.
        if self.ranges is None:
            array = np.pad(array, ((0, 0), (0, -array.shape[1] % 8)))
            codes = quantize_embeddings(array, "ubinary")
        else:
            codes = quantize_embeddings(np.clip(array, *self.ranges), "uint8", ranges=self.ranges)
        offset = _OFFSETS[self.precision]
        return (np.asarray(codes, dtype=np.int16) - offset).astype(np.int8 if offset else np.uint8)

    def scores(self, queries: ArrayLike, codes: ArrayLike) -> NDArray[np.float32]:
        """Compare queries as they are with codes: closer to the true cosines than codes with codes (rescoring).

        Args:
            queries: shape (n, d), unit length, not quantised.
            codes: what `quantize` returned for m documents.

        Returns:
            float32 array, shape (n, m): the inner products with what the codes stand for; for single bits that is the
            unit vector whose components have those signs.

        Raises:
            ValueError: shapes don't fit.
        """
        array = self._checked(queries)
        codes = np.asarray(codes)
        dimensions = array.shape[1]
        width = -(-dimensions // 8) if self._is_binary else dimensions
        if codes.ndim != 2 or codes.shape[1] != width:
            raise ValueError(f"codes must have shape (m, {width}), got {codes.shape}")
        levels = codes.astype(np.int16) + _OFFSETS[self.precision]
        if self.ranges is None:
            signs = np.unpackbits(levels.astype(np.uint8), axis=1)[:, :dimensions] * np.float32(2) - 1
            values: NDArray[np.float32] = signs / np.float32(dimensions**0.5)
        else:
            least, greatest = self.ranges
            steps = (greatest - least) / (_LEVELS - 1)
            # A code is its step's lower end: the middle is nearer to what was there.
            values = least + (levels + np.float32(0.5)) * steps
        scores: NDArray[np.float32] = array @ values.T
        return scores

    @property
    def _is_binary(self) -> bool:
        return self.precision in ("binary", "ubinary")

    def _checked(self, vectors: ArrayLike) -> NDArray[np.float32]:
        array = _as_matrix("vectors", vectors)
        if self.ranges is not None and array.shape[1] != self.ranges.shape[1]:
            raise ValueError(f"the vectors have {array.shape[1]} dimensions, and the ranges {self.ranges.shape[1]}")
        return array


def _as_matrix(name: str, vectors: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (n, d), got {array.shape}")
    return array
