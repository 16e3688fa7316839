"""Groups of texts within a budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen3_embed_integrations.engine.batching import groups


@given(st.lists(st.integers(1, 500)), st.integers(1, 1000))
def test_each_text_runs_once_within_the_budget(lengths, budget):
    made = groups(lengths, budget)
    assert sorted(position for group in made for position in group) == list(range(len(lengths)))
    for group in made:
        longest = max(lengths[position] for position in group)
        assert len(group) == 1 or longest * len(group) <= budget


def test_texts_of_like_length_go_together():
    assert groups([5, 100, 6, 90], 200) == [[1, 3], [2, 0]]


def test_a_text_above_the_budget_runs_alone():
    assert groups([50, 3, 60], 10) == [[2], [0], [1]]
