"""Cutting vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwen3_embed_integrations import truncate

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
