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

# Indexes that score chosen rows by themselves, sooner than one by one.
_FLAT = (faiss.IndexFlat, faiss.IndexScalarQuantizer)

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
# Rows that are decoded at once.
_PART = 65_536


class VectorRows:
    """Vectors of unit length, each in a row of an index.

    A deleted row stays in the index, since no graph can let go of one, until `compacted`.

    Args:
        index: an empty index of inner products; it is added to and searched here only.

    Raises:
        ValueError: the index is not empty, is none of inner products, or gives no vector back as it was.
    """

    def __init__(self, index: Any) -> None:
        if index.ntotal:
            raise ValueError(f"the index must be empty, but has {index.ntotal} vectors: load_local opens a saved store")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError("the index must be one of inner products: make it with faiss.METRIC_INNER_PRODUCT")
        if not isinstance(index, TwoStageIndex) and not _gives_back(index):
            raise ValueError(
                f"the index ({type(index).__name__}) can't be added to, or gives no vector back as it was, for exact "
                "scores: use two_stage_index without ids, an IndexFlatIP or a graph of full vectors"
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

    def emptied(self) -> VectorRows:
        """Return rows with an index of the same settings that holds none; these stay as they are."""
        return VectorRows.of_saved(_emptied(self.index), np.zeros(0, dtype=np.int64))

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
        kept = np.flatnonzero(self._known())
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
            candidates = self._candidates(vector, k, mask, count)
            if candidates is None:
                rows, scores = self._scored(vector, k, mask, count)
            else:
                rows, scores = candidates, self._scores(vector, candidates)
        order = np.lexsort((rows, -scores))[:k]
        return list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))

    def _candidates(
        self, vector: NDArray[np.float32], k: int, mask: NDArray[np.bool_], count: int
    ) -> NDArray[np.int64] | None:
        """Ask the graph for rows of a mask; None where it is sooner, or safer, to score all of them."""
        if isinstance(self.index, _FLAT) or count * self.dimensions <= _EXACT_COMPONENTS:
            return None
        needed = int(getattr(self.index, "k_factor", _OVERSAMPLING)) * k
        breadth = int(_SPARE * needed * len(mask) / count)
        while breadth <= min(_BROADEST, count * self.dimensions // _COMPONENTS_PER_STEP):
            found = self._nearest(vector, breadth)
            found = found[mask[found]][:needed]
            # What is missing may be anywhere: the nearest rows of all are known, and too few of them are wanted.
            if len(found) == needed:
                return found
            breadth *= 4
        return None

    def _nearest(self, vector: NDArray[np.float32], breadth: int) -> NDArray[np.int64]:
        """Search the graph, the first stage's where there are two: its rows, nearest first."""
        if isinstance(self.index, TwoStageIndex):
            parameters = faiss.SearchParametersHNSW(efSearch=max(breadth, self.index.graph.hnsw.efSearch))
            whole = faiss.SearchParametersPreTransform(index_params=parameters)
            _, [rows] = self.index.first_stage.search(vector[None], breadth, params=whole)
        elif isinstance(self.index, faiss.IndexHNSW):
            # FAISS's graphs take steps by this, however many rows are asked for.
            parameters = faiss.SearchParametersHNSW(efSearch=max(breadth, self.index.hnsw.efSearch))
            _, [rows] = self.index.search(vector[None], breadth, params=parameters)
        else:
            _, [rows] = self.index.search(vector[None], breadth)
        found: NDArray[np.int64] = rows[rows >= 0]
        return found

    def _scores(self, vector: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = range(0, len(rows), _PART)
        # Not `@`, whose threads a single query would wait for.
        return np.concatenate([np.einsum("ij,j->i", self.vectors(rows[at : at + _PART]), vector) for at in parts])

    def _scored(
        self, vector: NDArray[np.float32], k: int, mask: NDArray[np.bool_], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Score all rows of a mask; give those of the k best, at least."""
        two_stages = isinstance(self.index, TwoStageIndex)
        full = faiss.downcast_index(self.index.refine_index) if two_stages else self.index
        if _ROWS_PER_WANTED * count < len(mask) or not isinstance(full, _FLAT):
            rows = np.flatnonzero(mask)
            return rows, self._scores(vector, rows)
        bits = np.packbits(mask, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
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
    vector = np.random.default_rng(0).standard_normal((1, index.d), dtype=np.float32)
    vector /= np.linalg.norm(vector)
    try:
        copy = _emptied(index)
        copy.add(vector)
        return bool(np.allclose(copy.reconstruct_batch(np.zeros(1, dtype=np.int64)), vector, atol=0.01))
    except (AssertionError, RuntimeError):
        return False
