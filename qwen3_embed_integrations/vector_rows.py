"""Vectors in a FAISS index by row: a search gives the best of those that are neither deleted nor unwanted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_embed_integrations.matryoshka import import_faiss
from qwen3_embed_integrations.two_stage import TwoStageIndex, restored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

faiss = import_faiss()

# Candidates for each result, which their full vectors rank; a two-stage index has a number of its own.
_OVERSAMPLING = 12
# A graph's search is a little broader than the candidates that are needed.
_SPARE = 1.6
# Measured by benchmarks/store.py. An exact search reads so many components in about 4 ms, and this is done without the
# graph; one more in the graph's breadth costs as much as reading so many; beyond the broadest, FAISS slows down with
# the square; and it passes over every row to find the wanted ones, which pays off where no more than so many hold one.
_EXACT_COMPONENTS = 4_000_000
_COMPONENTS_PER_STEP = 4_500
_BROADEST = 20_000
_ROWS_PER_WANTED = 1_000
_PART = 65_536


class VectorRows:
    """Vectors of unit length, each in a row of an index.

    A deleted row stays in the index, since no graph can let go of one, until more are deleted than alive.

    Args:
        index: an empty index of inner products; it is added to and searched here only.

    Raises:
        ValueError: the index is not empty, must be trained, is none of inner products, or gives no vector back.
    """

    def __init__(self, index: Any) -> None:
        if index.ntotal:
            raise ValueError(f"the index must be empty, but has {index.ntotal} vectors: load_local opens a saved store")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("the index must be one of inner products: make it with faiss.METRIC_INNER_PRODUCT")
        if not _gives_back(index):
            raise ValueError(
                f"the index ({type(index).__name__}) can't be added to, or gives no vector back for an exact "
                "score: use two_stage_index, an IndexFlatIP or a graph"
            )
        self.index = index
        self._alive = np.zeros(0, dtype=np.bool_)

    @classmethod
    def of_saved(cls, index: Any, alive: NDArray[np.int64]) -> VectorRows:
        """Take over an index that was read from a file.

        Args:
            index: the index.
            alive: its rows that are not deleted.

        Returns:
            The rows.
        """
        rows = cls.__new__(cls)
        rows.index = restored(index)
        rows._alive = np.zeros(index.ntotal, dtype=np.bool_)
        rows._alive[alive] = True
        return rows

    @property
    def dimensions(self) -> int:
        """Components of the vectors."""
        return int(self.index.d)

    @property
    def dead(self) -> int:
        """How many rows are deleted."""
        return int(np.count_nonzero(~self._known()))

    def add(self, vectors: NDArray[np.float32]) -> int:
        """Add vectors as new rows, which are found once they are set alive.

        Args:
            vectors: shape (n, dimensions), unit length.

        Returns:
            The first new row.
        """
        first = int(self.index.ntotal)
        self.index.add(vectors)
        return first

    def set_alive(self, row: int, alive: bool) -> None:
        """Have a row found, or delete it.

        Args:
            row: which.
            alive: whether it may be found.
        """
        self._known()[row] = alive

    def _known(self) -> NDArray[np.bool_]:
        """Return which rows are alive; those that an interrupted call left in the index are not."""
        missing = int(self.index.ntotal) - len(self._alive)
        if missing:
            self._alive = np.concatenate([self._alive, np.zeros(missing, dtype=np.bool_)])
        return self._alive

    def clear(self) -> None:
        """Delete all rows."""
        self.index.reset()
        self._alive = np.zeros(0, dtype=np.bool_)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Get vectors back.

        Args:
            rows: which, shape (n,).

        Returns:
            float32 array, shape (n, dimensions).
        """
        vectors: NDArray[np.float32] = self.index.reconstruct_batch(rows)
        return vectors

    def compacted(self) -> tuple[VectorRows, NDArray[np.int64]]:
        """Build the index anew, without the deleted rows; this one stays as it is.

        Returns:
            The new rows, and of which old row each is, shape (rows,).
        """
        index = _emptied(self.index)
        kept = np.flatnonzero(self._alive)
        for start in range(0, len(kept), _PART):
            index.add(self.vectors(kept[start : start + _PART]))
        return VectorRows.of_saved(index, np.arange(len(kept))), kept

    def search(
        self, vector: NDArray[np.float32], k: int, wanted: NDArray[np.bool_] | None = None
    ) -> list[tuple[int, float]]:
        """Find the rows with the greatest inner products: k, or as many as are wanted and alive.

        Few rows, or few times as many as are asked for, are all scored. Among many the graph finds candidates; where
        too few of them are wanted all rows are scored too.

        Args:
            vector: shape (dimensions,), unit length.
            k: how many to find.
            wanted: which rows may be found, shape (rows or fewer,); None for all.

        Returns:
            Rows and scores, best first.
        """
        mask = self._known()
        if wanted is not None:
            mask = mask & np.pad(wanted, (0, len(mask) - len(wanted)))
        count = int(np.count_nonzero(mask))
        k = min(k, count)
        if not k:
            return []
        with _one_thread():
            rows, scores = self._scored(vector, k, self._narrowed(vector, k, mask, count))
        order = np.lexsort((rows, -scores))[:k]
        return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))

    def _narrowed(self, vector: NDArray[np.float32], k: int, mask: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
        """Have the graph choose among the rows of a mask, where that is sooner than scoring all of them."""
        if isinstance(self.index, faiss.IndexFlatCodes) or count * self.dimensions <= _EXACT_COMPONENTS:
            return mask
        is_refined = isinstance(self.index, faiss.IndexRefine)
        first_stage = self.index.base_index if is_refined else self.index
        needed = int(self.index.k_factor if is_refined else _OVERSAMPLING) * k
        breadth = int(_SPARE * needed * len(mask) / count)
        while breadth <= min(_BROADEST, count * self.dimensions // _COMPONENTS_PER_STEP):
            _, found = first_stage.search(vector[None], breadth)
            rows = found[0][found[0] >= 0]
            rows = rows[mask[rows]][:needed]
            # What is missing may be anywhere: the nearest rows of all are known, and too few of them are wanted.
            if len(rows) == needed:
                narrowed = np.zeros_like(mask)
                narrowed[rows] = True
                return narrowed
            breadth *= 4
        return mask

    def _scored(
        self, vector: NDArray[np.float32], k: int, mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Score the rows of a mask; give those of the k best, at least."""
        is_refined = isinstance(self.index, faiss.IndexRefine)
        full = faiss.downcast_index(self.index.refine_index) if is_refined else self.index
        if _ROWS_PER_WANTED * np.count_nonzero(mask) < len(mask) or not isinstance(full, faiss.IndexFlatCodes):
            rows = np.flatnonzero(mask)
            # Not `@`, whose threads a single query would wait for.
            return rows, np.einsum("ij,j->i", self.vectors(rows), vector)
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        scores, found = full.search(vector[None], k, params=faiss.SearchParameters(sel=selector))
        return found[0], scores[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    # A single query gains nothing from FAISS's threads, and waits for all of them. OpenMP keeps the number per thread.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _emptied(index: Any) -> Any:
    """Copy an index without its rows."""
    if isinstance(index, TwoStageIndex):
        return index.emptied()
    copy = faiss.clone_index(index)
    copy.reset()
    return copy


def _gives_back(index: Any) -> bool:
    try:
        copy = _emptied(index)
        copy.add(np.eye(1, index.d, dtype=np.float32))
        return bool(np.isfinite(copy.reconstruct_batch(np.zeros(1, dtype=np.int64))).all())
    except (AssertionError, RuntimeError):
        return False
