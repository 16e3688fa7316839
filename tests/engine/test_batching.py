"""Groups of texts within a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen3_embed_integrations.engine.batching import groups


@given(st.lists(st.integers(1, 500)), st.integers(1, 1000), st.booleans())
def test_each_text_runs_once_within_the_budget(lengths, budget, padded):
    made = groups(lengths, budget, padded=padded)
    assert sorted(position for group in made for position in group) == list(range(len(lengths)))
    for group in made:
        own = [lengths[position] for position in group]
        assert len(group) == 1 or (max(own) * len(own) if padded else sum(own)) <= budget


def test_texts_of_like_length_go_together():
    assert groups([5, 100, 6, 90], 200, padded=True) == [[1, 3], [2, 0]]
    assert groups([5, 100, 6, 90], 201, padded=False) == [[1, 3, 2, 0]]
    assert groups([5, 100, 6, 90], 200, padded=False) == [[1, 3, 2], [0]]


def test_a_text_above_the_budget_runs_alone():
    assert groups([50, 3, 60], 10, padded=False) == [[2], [0], [1]]
