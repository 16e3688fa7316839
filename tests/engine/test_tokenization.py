"""Token ids against the tokenizer that transformers loads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from qwen3_embed_integrations.engine.tokenization import _PROMPTS, Tokenization
from qwen3_embed_integrations.models import TINY_FOLDER

TINY = Tokenization(TINY_FOLDER)
REFERENCE = AutoTokenizer.from_pretrained(TINY_FOLDER)


@given(st.lists(st.text(), max_size=4))
def test_token_ids_are_those_of_transformers(texts):
    assert [list(ids) for ids in TINY.encode(texts)] == [REFERENCE(text).input_ids for text in texts]
    assert TINY.count(texts) == [len(REFERENCE(text).input_ids) for text in texts]


@given(st.text(st.characters(), max_size=30))
def test_any_string_has_tokens_surrogates_too(text):
    ids = next(iter(TINY.encode([text])))
    assert ids[-1] == REFERENCE.convert_tokens_to_ids("<|endoftext|>")


@given(st.text(min_size=1, max_size=60), st.integers(2, 40))
def test_a_cut_text_is_its_beginning_and_the_end_token(text, max_tokens):
    ids = next(iter(TINY.encode([text])))
    kept = TINY.cut(ids, max_tokens)
    assert list(kept) == REFERENCE(text, truncation=True, max_length=max_tokens).input_ids


def test_many_texts_keep_their_order():
    texts = [str(number) for number in range(3000)]
    decoded = [REFERENCE.decode(ids[:-1]) for ids in TINY.encode(texts)]
    assert decoded == texts


def test_only_so_many_prompts_are_kept_and_all_have_their_tokens():
    tokenization = Tokenization(TINY_FOLDER)
    for _ in range(2):
        for number in range(_PROMPTS + 5):
            prompt = f"Instruct: number {number}\nQuery:"
            assert list(tokenization.prompt(prompt)) == REFERENCE(prompt).input_ids[:-1]
            assert len(tokenization._prompts) <= _PROMPTS


def test_it_can_be_used_from_many_threads():
    texts = ["word " * count for count in range(200)]
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda text: TINY.count([text])[0], texts))
    assert counts == TINY.count(texts)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Tokenization(tmp_path)
