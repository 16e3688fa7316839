"""The dictionary of task sentences and the query template."""

from __future__ import annotations

import json

import pytest

from qwen3_embed_integrations import INSTRUCTION_SOURCES, INSTRUCTIONS, format_query
from qwen3_embed_integrations.instructions import resolve_instruction
from qwen3_embed_integrations.models import TINY_FOLDER


def test_there_are_at_least_twenty_sentences_each_with_its_source():
    assert len(INSTRUCTIONS) >= 20
    assert set(INSTRUCTION_SOURCES) == set(INSTRUCTIONS)
    assert all(source.strip() for source in INSTRUCTION_SOURCES.values())
    for task in INSTRUCTIONS.values():
        assert task.isascii()
        assert " " in task
        assert task == task.strip()
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS)


def test_the_default_is_the_prompt_that_ships_with_the_models():
    shipped = json.loads((TINY_FOLDER / "config_sentence_transformers.json").read_text())["prompts"]
    assert format_query("x y") == shipped["query"] + "x y"
    assert shipped["document"] == ""


def test_the_template_has_no_space_before_the_text():
    assert format_query("def f()", "Find functions that:") == "Instruct: Find functions that:\nQuery:def f()"
    assert format_query("", "bitext") == "Instruct: Retrieve parallel sentences\nQuery:"


def test_a_sentence_is_taken_as_it_is():
    assert resolve_instruction("Find the recipe ") == "Find the recipe "
    assert resolve_instruction("legal") == INSTRUCTIONS["legal"]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("websearch", "did you mean 'web_search'"),
        ("Code-Search", "did you mean 'code_search'"),
        (" legal ", "did you mean 'legal'"),
        ("qqqqqqqq", "the names are argument, bitext"),
        (" ", "has to be a whole sentence"),
        ("检索相关段落", "has to be a whole sentence"),
    ],
)
def test_a_single_word_that_is_no_name_is_refused(value, hint):
    with pytest.raises(ValueError, match=hint):
        resolve_instruction(value)


def test_a_value_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="an instruction must be a string, got None"):
        format_query("x", None)
