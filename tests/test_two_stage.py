"""The two-stage index where many vectors are equal, or nearly so."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from qwen3_embed_integrations.index_file import check_index, load_index, recall_of, save_index
from qwen3_embed_integrations.matryoshka import two_stage_index
from qwen3_embed_integrations.two_stage import restored

DIMENSIONS = 128
# Of float16.
ROUNDING = 1e-3


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def texts(count, random, dimensions=DIMENSIONS):
    """Vectors whose first components carry most, and which have much in common, as those of texts do."""
    common = np.random.default_rng(0).standard_normal(dimensions)
    return unit((random.standard_normal((count, dimensions)) + common) * np.arange(1, dimensions + 1) ** -0.4)


def crowd(vector, count, random, step=0.0):
    return unit(vector + step * unit(random.standard_normal((count, len(vector)))))


def recall(index, vectors, queries, k=10, ties=ROUNDING):
    """By score: among equal rows none is more right than another."""
    best = -np.sort(-(queries @ vectors.T), axis=1)[:, k - 1 : k]
    return float((index.search(queries, k)[0] >= best - ties).mean())


def filled(vectors, index=None, parts=6):
    index = index or two_stage_index(DIMENSIONS, 96)
    for part in np.array_split(vectors, parts):
        index.add(part)
    return index


def mixed(crowds, step, random, count=2000):
    """Texts, and crowds around some of them and around their middle, in no order."""
    distinct = texts(count, random)
    middles = [distinct.mean(axis=0), *distinct[:10]]
    parts = [crowd(middle, size, random, step) for middle, size in zip(middles, crowds, strict=False)]
    return random.permutation(np.concatenate([distinct, *parts]))


@pytest.mark.parametrize("crowds", [[2000], [8000], [5000, 5000, 5000], [40] * 10])
@pytest.mark.parametrize("step", [0.0, 0.002, 0.014], ids=["equal", "cosine 0.999998", "cosine 0.9999"])
def test_crowds_leave_recall_what_it_is(crowds, step):
    random = np.random.default_rng(len(crowds))
    vectors, queries = mixed(crowds, step, random), texts(200, random)
    # The rows of a crowd are as good as each other: no 8-bit code tells them apart.
    assert recall(filled(vectors), vectors, queries, ties=ROUNDING + step / 2) >= 0.97


def test_distinct_rows_lose_nothing():
    random = np.random.default_rng(1)
    vectors, queries = texts(5000, random), texts(200, random)
    assert recall(filled(vectors), vectors, queries) >= 0.99
    for copies in (2, 5):
        repeated = random.permutation(np.repeat(vectors[: 5000 // copies], copies, axis=0))
        assert recall(filled(repeated), repeated, queries) >= 0.98


def test_scores_are_those_of_the_vectors_that_were_added():
    random = np.random.default_rng(2)
    vectors, queries = mixed([500], 0.0, random, 500), texts(20, random)
    scores, rows = filled(vectors).search(queries, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, axis=1), atol=ROUNDING)


def test_crowds_that_come_one_by_one_and_after_a_file(tmp_path):
    random = np.random.default_rng(3)
    encoder = SimpleNamespace(dimensions=DIMENSIONS, fingerprint="a", encode_queries=np.array)
    vectors, queries = mixed([6000], 0.0, random), texts(200, random)
    index = two_stage_index(DIMENSIONS, 96)
    for vector in vectors[:600]:
        index.add(vector[None])
    filled(vectors[600:3000], index)
    save_index(index, tmp_path / "index", encoder)
    loaded = load_index(tmp_path / "index", encoder)
    for copy in (loaded, pickle.loads(pickle.dumps(index))):
        filled(vectors[3000:], copy)
        assert copy.ntotal == len(vectors)
        assert recall(copy, vectors, queries) >= 0.98
    save_index(loaded, tmp_path / "index", encoder)
    assert check_index(tmp_path / "index", encoder).recall is None
    assert check_index(tmp_path / "index", encoder, queries=queries).recall >= 0.98
    loaded.reset()
    filled(vectors, loaded)
    assert recall(loaded, vectors, queries) >= 0.98


def test_ids_of_ones_own(tmp_path):
    random = np.random.default_rng(4)
    encoder = SimpleNamespace(dimensions=DIMENSIONS, fingerprint="a")
    vectors, queries = mixed([6000], 0.0, random), texts(200, random)
    index = two_stage_index(DIMENSIONS, 96, with_ids=True)
    ids = np.arange(len(vectors)) + 10_000
    half = len(vectors) // 2
    index.add_with_ids(vectors[:half], ids[:half])
    save_index(index, tmp_path / "index", encoder)
    index = load_index(tmp_path / "index", encoder)
    index.add_with_ids(vectors[half:], ids[half:])
    scores, found = index.search(queries, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, found - 10_000, axis=1), atol=ROUNDING)
    assert recall(index, vectors, queries) >= 0.98
    assert recall_of(index, queries) >= 0.98
    for wrong in (ids[:1], ["a", "b"], [1.5, 2.5]):
        with pytest.raises(ValueError, match=r"one whole number per vector, got .* for 2 vectors"):
            index.add_with_ids(vectors[:2], wrong)
    assert index.ntotal == index.id_map.size() == len(vectors)


def test_check_index_tells_of_a_torn_graph(tmp_path):
    random = np.random.default_rng(5)
    encoder = SimpleNamespace(dimensions=DIMENSIONS, fingerprint="a", encode_queries=np.array)
    vectors, queries = mixed([8000], 0.0, random), texts(200, random)
    torn = faiss.IndexHNSWFlat(DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
    torn.add(vectors)
    save_index(torn, tmp_path / "index", encoder)
    measured = check_index(tmp_path / "index", encoder, queries=queries).recall
    assert measured == pytest.approx(recall(torn, vectors, queries), abs=0.01)
    assert measured < 0.9
    with pytest.raises(ValueError, match="no queries"):
        check_index(tmp_path / "index", encoder, queries=[])
    with pytest.raises(ValueError, match="of inner products"):
        recall_of(faiss.IndexFlatL2(DIMENSIONS), queries)
    assert recall_of(two_stage_index(DIMENSIONS), queries) == 1


@pytest.mark.parametrize("dimensions", [2, 31, 32, 33, 1024])
@pytest.mark.parametrize("search", [1, 31, 32, None])
def test_any_dimensions(dimensions, search):
    random = np.random.default_rng(6)
    vectors = np.concatenate([texts(8, random, dimensions)] * 8)
    index = filled(vectors, two_stage_index(dimensions, search and min(search, dimensions)))
    assert recall(index, vectors, vectors[:8], k=8) == 1


def test_wrong_vectors_leave_the_index_as_it_was():
    index = filled(texts(10, np.random.default_rng(7)))
    for wrong in (np.zeros((1, 5), np.float32), np.zeros(DIMENSIONS, np.float32)):
        with pytest.raises(ValueError, match=r"shape \(n, 128\)"):
            index.add(wrong)
    index.add(np.zeros((0, DIMENSIONS), np.float32))
    assert index.ntotal == 10


def test_other_indexes_stay_what_they_are():
    for other in (
        faiss.IndexFlatIP(4),
        faiss.IndexIDMap(faiss.IndexFlatIP(4)),
        faiss.IndexRefineFlat(faiss.IndexFlatIP(4)),
    ):
        assert type(restored(other)) is type(other)


def test_rows_that_have_much_in_common_are_no_crowd():
    random = np.random.default_rng(8)
    common = 5 * unit(random.standard_normal((1, DIMENSIONS)))
    vectors = unit(common + unit(random.standard_normal((10_000, DIMENSIONS))))
    queries = unit(common + unit(random.standard_normal((100, DIMENSIONS))))
    # 8-bit codes tell vectors of such cosines (0.96) apart this well, and no better.
    assert recall(filled(vectors, two_stage_index(DIMENSIONS)), vectors, queries, ties=0) >= 0.85


@pytest.mark.parametrize("place", ["before", "between"])
def test_an_interrupt_leaves_an_index_that_can_be_added_to(monkeypatch, place):
    random = np.random.default_rng(9)
    vectors = texts(3000, random)
    index = filled(vectors[:1000])

    def interrupted(*_):
        raise KeyboardInterrupt

    part = {"before": faiss.IndexScalarQuantizer, "between": faiss.IndexHNSWSQ}[place]
    with monkeypatch.context() as patch:
        patch.setattr(part, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.add(vectors[1000:2000])
    assert index.ntotal == 1000
    index.add(vectors[1000:])
    assert recall(index, vectors, vectors[::100]) >= 0.98


def test_more_candidates_than_the_graph_is_broad():
    random = np.random.default_rng(10)
    vectors, queries = texts(10_000, random), texts(50, random)
    assert recall(filled(vectors), vectors, queries, k=200) >= 0.97
