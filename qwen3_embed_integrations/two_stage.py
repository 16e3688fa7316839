"""The two-stage index as a class of FAISS's own parts that keeps many equal rows from tearing its graph apart.

A row's neighbours in an HNSW graph are the nearest rows. Where more rows are equal, or nearly equal, than a row has
neighbours, these are nothing but each other: no way leads out of such a crowd, and a search that meets it sees little
else. FAISS offers no remedy, so `TwoStageIndex.add` does three things to the rows of a crowd, in the first stage alone:

- They live in the graph's lowest level only, so that the levels above, through which a search comes, hold few of them.
- Each is moved a little in a random direction, since where all distances are 0 no link is better than another.
- A component, the mark, has another sign for them than for the other rows, so that the graph links the other rows to
  each other first. Queries have a little of it: a crowd looks a little farther than it is, so that those of the other
  rows that are as near are met before it fills the search. The second stage knows nothing of it.

Here, 3,000 rows among 60,000 equal ones in three crowds have recall@10 of 0.99, and 0.4 to 0.85 without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_embed_integrations.matryoshka import import_faiss

if TYPE_CHECKING:
    from numpy.typing import NDArray

faiss = import_faiss()

# A row belongs to a crowd if so many before it had the same SimHash (https://doi.org/10.1145/509907.509965).
_CROWD = 4
# Templates have much in common: with fewer bits, texts whose cosines are 0.96 would share hashes.
_HASH_BITS = 192
# Places to count hashes in, for each row that is expected: few distinct rows share one.
_PLACES_PER_ROW = 4
_LEAST_PLACES = 2**16
# Lengths of the random move and of the mark, of vectors of length 1: less does not part a crowd from the others, and
# more keeps the others from finding the crowd.
_STEP = 0.01
_MARK = 0.3
# By how much of a cosine a crowd looks farther to a query.
_FARTHER = 0.03
# With fewer components the mark comes on top: each of them tells too much to make room.
_FEW = 32
# Rows that are decoded at once.
_PART = 65_536


def widest_component(dimensions: int) -> float:
    """Choose the range of the 8-bit codes, given instead of learned from vectors, since stores add without training.

    Args:
        dimensions: components of the first stage's unit vectors.

    Returns:
        Eight times what a component is on average, 1 / sqrt(dimensions); what is larger is clipped.
    """
    return min(1.0, 8 / float(np.sqrt(dimensions)))


class TwoStageIndex(faiss.IndexRefine):  # type: ignore[misc, name-defined]
    """What `two_stage_index` makes; FAISS writes it, and reads it as a plain `IndexRefine`, which `restored` takes.

    Args:
        dimensions: components of the vectors.
        search_dimensions: components of the first stage.
        neighbors: links of a node in the graph.
    """

    # FAISS lets only attributes be assigned that the class has.
    _counted: _Counter | None = None

    def __init__(self, dimensions: int, search_dimensions: int, neighbors: int) -> None:
        widest = widest_component(search_dimensions)
        marks = int(np.ceil((_MARK / widest) ** 2))
        heads = search_dimensions if search_dimensions < _FEW else search_dimensions - marks
        width = heads + marks
        graph = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_8bit_uniform, neighbors, faiss.METRIC_INNER_PRODUCT)
        graph.train(np.repeat(np.array([[-widest], [widest]], dtype=np.float32), width, axis=1))
        head = faiss.RemapDimensionsTransform(dimensions, width, False)
        faiss.copy_array_to_vector(np.array([*range(heads), *[-1] * marks], dtype=np.int32), head.map)
        # Adds to the mark, by taking away less than nothing.
        mark = faiss.CenteringTransform(width)
        added = _FARTHER / (2 * _MARK * np.sqrt(marks))
        faiss.copy_array_to_vector(np.array([*[0.0] * heads, *[-added] * marks], dtype=np.float32), mark.mean)
        mark.is_trained = True
        first_stage = faiss.IndexPreTransform(graph)
        first_stage.prepend_transform(mark)
        first_stage.prepend_transform(faiss.NormalizationTransform(width))
        first_stage.prepend_transform(head)
        full = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        super().__init__(first_stage, full)

    @property
    def first_stage(self) -> Any:
        """The index of the small vectors, which finds candidates."""
        return faiss.downcast_index(self.base_index)

    @property
    def graph(self) -> Any:
        """The graph in the first stage."""
        return faiss.downcast_index(self.first_stage.index)

    def add(self, x: NDArray[np.float32]) -> None:
        """Add vectors as new rows.

        Args:
            x: float32 array, shape (n, dimensions), unit length.

        Raises:
            ValueError: x has another shape.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"the vectors must have shape (n, {self.d}), got {x.shape}")
        if not len(x):
            return
        self._mend()
        graph, full = self.graph, faiss.downcast_index(self.refine_index)
        small = self._small(x)
        crowded = self._counter().seen(small)
        random = np.random.default_rng(self.ntotal)
        self._place(small, crowded, random)
        try:
            for level in _levels(graph.hnsw, crowded, random).tolist():
                graph.hnsw.levels.push_back(level)
            full.add(x)
            graph.add(small)
        finally:
            self._mend()

    def _mend(self) -> None:
        """Have all parts hold the rows that the graph has: an interrupt may have come between two of them."""
        first_stage, graph, full = self.first_stage, self.graph, faiss.downcast_index(self.refine_index)
        rows = graph.ntotal
        graph.hnsw.levels.resize(rows)
        full.codes.resize(rows * full.code_size)
        full.ntotal = first_stage.ntotal = rows
        self.ntotal: int = rows

    def search(self, x: NDArray[np.float32], k: int, *, params: Any = None, **outputs: Any) -> Any:
        """Find the rows with the greatest inner products; the graph's search is as broad as the candidates are many.

        Args:
            x: queries, float32 array, shape (n, dimensions).
            k: how many to find for each.
            params: FAISS's search parameters, in place of the index's settings.
            **outputs: arrays to write to, as in FAISS.

        Returns:
            Scores, float32 array, shape (n, k), best first, and rows, int64 array of the same shape.
        """
        breadth = int(self.k_factor) * k
        if params is None and breadth > self.graph.hnsw.efSearch:
            graph = faiss.SearchParametersHNSW(efSearch=breadth)
            first_stage = faiss.SearchParametersPreTransform(index_params=graph)
            params = faiss.IndexRefineSearchParameters(k_factor=self.k_factor, base_index_params=first_stage)
        return super().search(x, k, params=params, **outputs)

    def reset(self) -> None:
        """Remove all rows."""
        super().reset()
        self._counted = None

    def emptied(self) -> TwoStageIndex:
        """Make an index with the same settings and no rows."""
        # FAISS can't clone the transform that cuts vectors.
        graph, heads = self.graph, self._heads()
        empty = TwoStageIndex(self.d, heads if heads < _FEW else graph.d, graph.hnsw.nb_neighbors(1))
        empty.graph.hnsw.efSearch = graph.hnsw.efSearch
        empty.graph.hnsw.efConstruction = graph.hnsw.efConstruction
        empty.k_factor = self.k_factor
        return empty

    def _small(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Make what the graph holds of vectors: shape (n, its dimensions), with a query's mark."""
        chain = self.first_stage.chain
        for place in range(chain.size()):
            x = faiss.downcast_VectorTransform(chain.at(place)).apply(x)
        return x

    def _heads(self) -> int:
        return _head_components(self.first_stage)

    def _place(self, small: NDArray[np.float32], crowded: NDArray[np.bool_], random: np.random.Generator) -> None:
        """Write the mark, and move the rows of a crowd."""
        heads = self._heads()
        marks = small.shape[1] - heads
        steps = random.standard_normal((int(crowded.sum()), heads), dtype=np.float32)
        small[crowded, :heads] += _STEP * steps / np.linalg.norm(steps, axis=1, keepdims=True)
        small[:, heads:] = np.where(crowded, -1, 1)[:, None] * np.float32(_MARK / np.sqrt(marks))

    def _counter(self) -> _Counter:
        # Not there after a file or a pickle; past its rows where FAISS's own ways added some, or there are too many.
        counter = self._counted
        if counter is None or counter.rows != self.ntotal or counter.is_full:
            counter = _Counter(self._heads(), self.ntotal)
            for start in range(0, self.ntotal, _PART):
                rows = np.arange(start, min(start + _PART, self.ntotal), dtype=np.int64)
                counter.seen(self._small(self.reconstruct_batch(rows)))
            self._counted = counter
        return counter


class TwoStageIdMap(faiss.IndexIDMap):  # type: ignore[misc, name-defined]
    """A two-stage index whose rows carry ids of their own: FAISS's `IndexIDMap` would add to it by FAISS's own ways.

    Args:
        index: an empty `TwoStageIndex`.
    """

    _inner: TwoStageIndex | None = None

    def add_with_ids(self, x: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        """Add vectors as new rows.

        Args:
            x: float32 array, shape (n, dimensions), unit length.
            ids: one whole number per vector, shape (n,).

        Raises:
            ValueError: x or ids have another shape, or ids are no whole numbers.
        """
        numbers = np.asarray(ids)
        if numbers.dtype.kind not in "iu" or numbers.shape != (len(x),):
            raise ValueError(f"ids must be one whole number per vector, got {numbers!r:.80} for {len(x)} vectors")
        if self._inner is None:
            self._inner = restored(faiss.downcast_index(self.index))
        try:
            for number in numbers.tolist():
                self.id_map.push_back(number)
            self._inner.add(x)
        finally:
            self.id_map.resize(self._inner.ntotal)
            self.ntotal = self._inner.ntotal


class _Counter:
    """Counts nearly equal rows by their SimHash.

    Args:
        dimensions: how many leading components to look at.
        rows: how many will be counted at once.
    """

    def __init__(self, dimensions: int, rows: int) -> None:
        self.rows = 0
        places = max(_LEAST_PLACES, 4 * _PLACES_PER_ROW * rows)
        self._counts = np.zeros(1 << (places - 1).bit_length(), dtype=np.uint8)
        random = np.random.default_rng(0)
        self._planes = random.standard_normal((dimensions, _HASH_BITS), dtype=np.float32)
        self._factors = random.integers(0, 2**63, _HASH_BITS // 64, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    @property
    def is_full(self) -> bool:
        """Whether so many rows were counted that distinct ones often share a place."""
        return _PLACES_PER_ROW * self.rows > len(self._counts)

    def seen(self, small: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Count rows, and find those that have enough nearly equal ones before them.

        Args:
            small: the rows, shape (n, dimensions or more).

        Returns:
            Which belong to a crowd, shape (n,).
        """
        bits = small[:, : len(self._planes)] @ self._planes > 0
        words = np.packbits(bits, axis=1).view(np.uint64)
        # Multiplied by odd numbers, which spreads what differs in any bit over the first ones.
        hashes = (words * self._factors).sum(axis=1, dtype=np.uint64)
        places = (hashes >> np.uint64(65 - len(self._counts).bit_length())).astype(np.int64)
        order = np.argsort(places, kind="stable")
        found, starts, counts = np.unique(places[order], return_index=True, return_counts=True)
        before = np.empty(len(places), dtype=np.int64)
        before[order] = np.arange(len(places)) - np.repeat(starts, counts)
        crowded: NDArray[np.bool_] = before + self._counts[places] >= _CROWD
        self._counts[found] = np.minimum(self._counts[found] + counts, 255)
        self.rows += len(small)
        return crowded


def _levels(hnsw: Any, crowded: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.int64]:
    """Draw how many of the graph's levels each row is in, as FAISS does, but one for those of a crowd."""
    highest = hnsw.assign_probas.size()
    links = hnsw.nb_neighbors(1)
    drawn = 1 + np.floor(random.standard_exponential(len(crowded)) / np.log(links)).astype(np.int64)
    return np.where(crowded, 1, np.minimum(drawn, highest))


def _head_components(first_stage: Any) -> int:
    head = faiss.downcast_VectorTransform(first_stage.chain.at(0))
    return int((faiss.vector_to_array(head.map) >= 0).sum())


def restored(index: Any) -> Any:
    """Make a `TwoStageIndex` of one that FAISS has read, which it gives back without this package's class.

    Args:
        index: any FAISS index; it is changed.

    Returns:
        The index.
    """
    # The object itself, since one that FAISS's downcast_index returns does not keep the index alive.
    if type(index) is faiss.IndexIDMap and isinstance(restored(faiss.downcast_index(index.index)), TwoStageIndex):
        index.__class__ = TwoStageIdMap
    elif type(index) is faiss.IndexRefine and _is_ours(faiss.downcast_index(index.base_index)):
        index.__class__ = TwoStageIndex
    return index


def _is_ours(first_stage: Any) -> bool:
    if not isinstance(first_stage, faiss.IndexPreTransform) or not first_stage.chain.size():
        return False
    head = faiss.downcast_VectorTransform(first_stage.chain.at(0))
    graph = faiss.downcast_index(first_stage.index)
    is_built_alike = isinstance(head, faiss.RemapDimensionsTransform) and isinstance(graph, faiss.IndexHNSWSQ)
    return is_built_alike and _head_components(first_stage) < graph.d
