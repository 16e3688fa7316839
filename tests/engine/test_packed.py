"""Packed texts: independent of their neighbours, with and without a cached prefix, in float32 and int8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.engine.packed import _PREFIXES, shared_prefix
from qwen3_embed_integrations.engine.quantization import Int8Linear, TokenQuantizer
from tests.conftest import as_query, cosines

TEXTS = ["def f(x):", "a", "", "a longer text with some words in it", "a", "(x)", " blank", "\n", "x" * 500, "中文"]


@pytest.fixture(scope="module", params=["float32", "int8"])
def encoder(request, model_folder):
    quantization = "int8" if request.param == "int8" else None
    return Qwen3Encoder(model_folder, dtype="float32", device="cpu", quantization=quantization)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8), st.integers(1, 300), st.booleans())
def test_a_vector_never_depends_on_its_neighbours(encoder, texts, batch_tokens, queries):
    grouped = encoder.replaced(batch_tokens=batch_tokens)
    embed = grouped.encode_queries if queries else grouped.encode_documents
    alone = encoder.encode_queries if queries else encoder.encode_documents
    for text, vector in zip(texts, embed(texts), strict=True):
        assert cosines(vector, alone([text])[0]) >= 0.99999


def test_the_cached_prefix_changes_nothing(encoder):
    queries = encoder.encode_queries(TEXTS)
    written_out = encoder.encode_documents([as_query(text) for text in TEXTS])
    assert (cosines(queries, written_out) >= 0.99999).all()


def test_equal_texts_are_computed_once(model_folder, monkeypatch):
    encoder = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    model = encoder._engine().load()
    computed = []
    embed = model.embed
    monkeypatch.setattr(model, "embed", lambda items: computed.extend(items) or embed(items))
    vectors = encoder.encode_documents(["same", "other", "same", "same"])
    assert len(computed) == 2
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(vectors[0], vectors[3])
    assert not np.array_equal(vectors[0], vectors[1])


def test_the_least_recently_used_instruction_is_dropped(model_folder):
    encoder = Qwen3Encoder(model_folder, dtype="bfloat16", device="cpu")
    model = encoder._engine().load()
    first = encoder.encode_queries(["x"], instruction="Instruction number 0")
    for number in range(_PREFIXES + 5):
        encoder.encode_queries(["x"], instruction=f"Instruction number {number}")
    assert len(model._prefixes) == _PREFIXES
    assert np.array_equal(encoder.encode_queries(["x"], instruction="Instruction number 0"), first)


@pytest.mark.parametrize(
    ("prompt", "text", "shared"),
    [
        ([1, 2, 3], [1, 2, 3, 4, 9], 3),
        ([1, 2, 3], [1, 2, 7, 9], 2),
        ([1, 2, 3], [1, 2, 3, 9], 3),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [5], 0),
        ([], [5, 9], 0),
    ],
)
def test_the_shared_part_is_counted_in_tokens_and_leaves_the_last(prompt, text, shared):
    assert shared_prefix(np.array(prompt, dtype=np.int64), np.array(text, dtype=np.int64)) == shared


def test_an_int8_layer_is_close_to_the_exact_one_row_by_row():
    torch.manual_seed(0)
    exact = nn.Linear(64, 32, bias=False)
    layer = Int8Linear(exact, TokenQuantizer())
    rows = torch.randn(5, 64)
    rows[0] *= 1000
    with torch.inference_mode():
        together, expected = layer(rows), exact(rows)
        assert torch.equal(together[3], layer(rows[3:4])[0])
    error = (together - expected).norm(dim=1) / expected.norm(dim=1)
    assert (error < 0.02).all()


def test_int8_keeps_the_directions(model_folder):
    exact = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    vectors = exact.replaced(quantization="int8").encode_documents(TEXTS)
    assert (cosines(vectors, exact.encode_documents(TEXTS)) > 0.99).all()
    tiny = Qwen3Encoder("tiny", dtype="float32", device="cpu")
    vectors = tiny.replaced(quantization="int8").encode_documents(TEXTS)
    assert (cosines(vectors, tiny.encode_documents(TEXTS)) > 0.99).all()
