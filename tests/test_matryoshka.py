"""Cutting vectors, and the two-stage index."""

from __future__ import annotations

import pickle

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwen3_embed_integrations import truncate
from qwen3_embed_integrations.matryoshka import two_stage_index

FLOATS = st.floats(-1000, 1000, width=32)


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=FLOATS), st.data())
def test_a_cut_vector_points_where_its_head_does(vectors, data):
    dimensions = data.draw(st.integers(1, vectors.shape[-1]))
    cut = truncate(vectors, dimensions)
    assert cut.dtype == np.float32
    assert cut.shape == (len(vectors), dimensions)
    for head, unit in zip(vectors[:, :dimensions].astype(np.float64), cut, strict=True):
        norm = np.linalg.norm(head)
        if norm > 1e-15:
            np.testing.assert_allclose(unit, head / norm, atol=1e-6)


def test_any_shape_and_any_sequence():
    assert truncate([3.0, 4.0, 5.0], 2).tolist() == pytest.approx([0.6, 0.8])
    assert truncate(np.ones((2, 3, 4)), 1).tolist() == [[[1.0]] * 3] * 2


def test_a_head_of_zeros_has_no_direction():
    assert truncate([0.0, 0.0, 1.0], 2).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dimensions", [0, -1, 4])
def test_dimensions_out_of_range(dimensions):
    with pytest.raises(ValueError, match=f"dimensions must be between 1 and 3, got {dimensions}"):
        truncate(np.ones((2, 3)), dimensions)


def test_input_that_is_no_vector():
    with pytest.raises(ValueError, match="got a single number"):
        truncate(3.0, 1)
    with pytest.raises(TypeError, match="dimensions must be an integer"):
        truncate([1.0, 2.0], "1")


def matryoshka_like(count: int, dimensions: int = 128) -> np.ndarray:
    """Unit vectors whose first components carry most."""
    spread = np.arange(1, dimensions + 1) ** -0.7
    vectors = np.random.default_rng(0).normal(size=(count, dimensions)) * spread
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_index_finds_what_exact_search_does():
    vectors, queries = matryoshka_like(3000), matryoshka_like(50)[::-1]
    index = two_stage_index(128, 64)
    assert index.is_trained
    for part in np.array_split(vectors, 7):
        index.add(part)
    scores, rows = index.search(queries, 10)
    exact = queries @ vectors.T
    best = np.argsort(-exact, axis=1)[:, :10]
    assert np.mean([len(set(found) & set(right)) / 10 for found, right in zip(rows, best, strict=True)]) > 0.98
    np.testing.assert_allclose(scores, np.take_along_axis(exact, rows, axis=1), atol=1e-3)


def test_the_second_stage_ranks_by_what_the_first_cannot_see():
    vectors = np.zeros((3, 4), dtype=np.float32)
    vectors[:, 0] = 0.6
    vectors[[0, 1, 2], [1, 2, 3]] = 0.8
    index = two_stage_index(4, 1)
    index.add(vectors)
    for row in range(3):
        scores, rows = index.search(vectors[row : row + 1], 3)
        assert rows[0][0] == row
        np.testing.assert_allclose(scores[0], [1, 0.36, 0.36], atol=1e-3)


def test_a_vector_of_one_component_is_found_though_its_code_is_clipped():
    axis = np.eye(128, dtype=np.float32)[5:6]
    index = two_stage_index(128)
    index.add(np.concatenate([matryoshka_like(500), axis]))
    scores, rows = index.search(axis, 1)
    assert rows[0][0] == 500
    assert scores[0][0] == pytest.approx(1)


def test_the_index_survives_files_and_pickles(tmp_path):
    vectors = matryoshka_like(300)
    index = two_stage_index(128, 64, oversampling=7, ef_search=33)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index"))
    expected = index.search(vectors[:5], 4)
    for copy in (faiss.read_index(str(tmp_path / "index")), pickle.loads(pickle.dumps(index))):
        np.testing.assert_array_equal(copy.search(vectors[:5], 4)[1], expected[1])
        assert copy.k_factor == 7
        graph = faiss.downcast_index(faiss.downcast_index(copy.base_index).index)
        assert graph.hnsw.efSearch == 33
        copy.add(vectors[:1])
        assert copy.ntotal == 301


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "dimensions must be at least 1, got 0"),
        ((128, 129), r"search_dimensions must be between 1 and dimensions \(128\), got 129"),
        ((128, 0), "search_dimensions must be between 1"),
    ],
)
def test_sizes_of_the_index_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_stage_index(*arguments)


def test_settings_of_the_index_out_of_range():
    for name in ("oversampling", "ef_search", "ef_construction"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            two_stage_index(256, **{name: 0})
    with pytest.raises(ValueError, match="neighbors must be at least 2, got 1"):
        two_stage_index(256, neighbors=1)
    with pytest.raises(TypeError, match="search_dimensions must be an integer"):
        two_stage_index(256, 64.0)
