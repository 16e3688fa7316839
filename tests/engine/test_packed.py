"""Packed texts: independent of their neighbours, with and without a cached prefix, in float32 and int8."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from torch import nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.engine import cpu, varlen
from qwen3_embed_integrations.engine.cpu import (
    FBGEMMProduct,
    FusedAttention,
    HalfLinear,
    Int8Linear,
    OneDNNProduct,
    PackedLinear,
    PlainProduct,
    RMSNorm,
    SmallHalfLinear,
    TokenQuantizer,
)
from qwen3_embed_integrations.engine.packed import (
    _BLOCK,
    _PREFIXES,
    PackedModel,
    causal_attention,
    shared_prefix,
)
from qwen3_embed_integrations.engine.scheduler import Item
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


def quantized(linear: nn.Linear) -> Int8Linear:
    return Int8Linear(linear, TokenQuantizer(rounds=not cpu.int8_product()[0].rounds))


def test_an_int8_layer_is_close_to_the_exact_one_row_by_row():
    torch.manual_seed(0)
    exact = nn.Linear(64, 32, bias=False)
    layer = quantized(exact)
    rows = torch.randn(5, 64)
    rows[0] *= 1000
    with torch.inference_mode():
        together, expected = layer(rows), exact(rows)
        assert torch.equal(together[3], layer(rows[3:4])[0])
    error = (together - expected).norm(dim=1) / expected.norm(dim=1)
    assert (error < 0.02).all()


@pytest.mark.parametrize(
    ("product", "largest"), [(OneDNNProduct, 127), (FBGEMMProduct, 63), (OneDNNProduct, 63), (PlainProduct, 127)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_are_those_of_the_rounded_numbers(monkeypatch, product, largest, dtype):
    if not cpu.is_exact(product, largest):
        pytest.skip("this torch has no such products, or this processor adds them in 16 bits")
    monkeypatch.setattr(cpu, "int8_product", lambda: (product, largest))
    torch.manual_seed(0)
    exact = nn.Linear(64, 32, dtype=dtype)
    # An outlier, at which activations and weights are as large as they can be.
    rows = torch.randn(5, 64, dtype=dtype)
    rows[0] = 100.0
    weight = exact.weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True) / largest
    with torch.inference_mode():
        found = quantized(exact)(rows)
        _, row_scales = TokenQuantizer(rounds=True)(rows)
        rounded = (rows / row_scales.float()).round() * row_scales
        expected = functional.linear(rounded, (weight / scales).round() * scales, exact.bias.float()).to(dtype)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    assert found.dtype == dtype
    assert torch.allclose(found, expected, **tolerance)
    assert torch.allclose(found[1:], exact(rows)[1:], atol=0.05)


def test_what_is_packed_in_8_bits_never_saturates():
    """The largest numbers there can be, in every place: 16 bits do not hold two such products."""
    layer = nn.Linear(512, 256, bias=False)
    nn.init.constant_(layer.weight, -0.5)
    with torch.inference_mode():
        product = quantized(layer)(torch.full((3, 512), 2.0))
    assert torch.allclose(product, torch.full((3, 256), -512.0), rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_layers_give_what_the_plain_ones_give(dtype):
    if not cpu._runs(PackedLinear, dtype):
        pytest.skip(f"this processor has no packed products in {dtype}, and the engine takes plain ones")
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, dtype=dtype)
    tolerance = {"rtol": 0.01, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    with torch.inference_mode():
        packed = PackedLinear(linear)
        for rows in (torch.randn(1, 3, 64, dtype=dtype), torch.randn(1, 3000, 64, dtype=dtype)):
            product = linear(rows)
            assert torch.allclose(packed(rows), product, **tolerance)
            assert torch.allclose(packed.silu(rows), functional.silu(product), **tolerance)
            assert torch.allclose(packed.times(rows, product), product * product, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_gives_what_that_of_transformers_gives(dtype):
    torch.manual_seed(0)
    norm = Qwen3RMSNorm(64).to(dtype)
    nn.init.normal_(norm.weight)
    # Rows so short that epsilon counts, and one of zeros.
    rows = torch.randn(1, 30, 64, dtype=dtype) * torch.logspace(-5, 5, 30, dtype=dtype)[:, None]
    rows[0, 3] = 0
    tolerance = {"rtol": 0.01, "atol": 0.01} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    with torch.inference_mode():
        assert torch.allclose(RMSNorm(norm.weight, norm.variance_epsilon)(rows), norm(rows), **tolerance)


@pytest.mark.parametrize("kind", [HalfLinear, SmallHalfLinear])
@pytest.mark.parametrize("bias", [False, True])
def test_16_bit_weights_give_what_float32_ones_give(kind, bias):
    if not cpu._runs(kind, torch.float32):
        pytest.skip("this torch does not multiply by them, and the engine takes float32 weights")
    torch.manual_seed(0)
    linear = nn.Linear(512, 96, bias=bias).to(torch.bfloat16).float()
    assert HalfLinear.fits(linear)
    with torch.inference_mode():
        half, rows = kind(linear), torch.randn(1, 300, 512)
        product, exact = half(rows), linear(rows)
        alone = torch.cat([half(row) for row in rows.split(1, dim=1)], dim=1)
    assert torch.allclose(product, exact, rtol=1e-5, atol=1e-5)
    assert torch.allclose(alone, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "fits"),
    [
        (torch.tensor([[0.5, -2.0, 0.0, 1e-9]]), True),
        (torch.tensor([[0.5, 0.1]]), False),
        (torch.tensor([[0.5, 131072.0]]), False),
        (torch.tensor([[2**-20 + 2**-27, 2**-27]]), False),
        (torch.tensor([[0.5, torch.nan]]), False),
        (torch.tensor([[0.5, 2.0]], dtype=torch.bfloat16), False),
    ],
    ids=["rounded off to nothing that counts", "more digits", "too large", "all too small", "not a number", "bfloat16"],
)
def test_weights_take_16_bits_only_where_they_lose_nothing(weight, fits):
    linear = nn.Linear(*reversed(weight.shape), bias=False)
    linear.weight = nn.Parameter(weight)
    assert HalfLinear.fits(linear) == fits


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("published", [False, True], ids=["float32 weights", "bfloat16 weights"])
@pytest.mark.parametrize(
    ("small_weight", "kinds"), [(0, [PackedLinear, HalfLinear]), (2**30, [nn.Linear, SmallHalfLinear])]
)
@pytest.mark.parametrize("many_rows", [cpu._MANY_ROWS, 200], ids=["whole", "in slices"])
def test_the_replaced_layers_give_what_those_of_transformers_give(
    bias, published, small_weight, kinds, many_rows, monkeypatch
):
    for kind in (PackedLinear, HalfLinear, SmallHalfLinear):
        if not cpu._runs(kind, torch.float32):
            pytest.skip("this torch or this processor lacks some of the layers")
    monkeypatch.setattr(cpu, "_SMALL_WEIGHT", small_weight)
    monkeypatch.setattr(cpu, "_MANY_ROWS", many_rows)
    monkeypatch.setattr(cpu, "_ROWS_AT_ONCE", 64)
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=3, head_dim=16,
                         num_attention_heads=8, num_key_value_heads=2, attention_bias=bias)  # fmt: skip
    model = Qwen3Model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    if published:
        model.bfloat16().float()
    texts = [torch.randint(99, (length,)) for length in (5, 9, 5, 1, 300)]
    with torch.inference_mode():
        expected = [model(ids[None]).last_hidden_state[0, -1].numpy() for ids in texts]
    packed = PackedModel([SimpleNamespace(auto_model=model)])
    assert isinstance(model.layers[0].self_attn, FusedAttention)
    assert type(model.layers[0].mlp.up_proj) is kinds[published]
    found = packed.embed([Item(ids.numpy(), np.empty(0, dtype=np.int64)) for ids in texts])
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, _BLOCK - 1, _BLOCK, 2 * _BLOCK + 3])
def test_attention_in_blocks_is_causal_attention(length):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 16) for heads in (4, 2, 2))
    output = causal_attention(query, key, value, 0.3)
    expected = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(output, expected.transpose(1, 2), atol=1e-5)


def as_documented(
    query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale, window_size, **grouped
):
    """Compute text by text what torch documents of `varlen_attn`, which needs CUDA."""
    assert window_size == (-1, 0)
    assert grouped == varlen._GROUPED
    assert longest_query == query_ends.diff().max()
    assert longest_key == key_ends.diff().max()
    parts = []
    for number in range(len(query_ends) - 1):
        asked = query[query_ends[number] : query_ends[number + 1]].transpose(0, 1)
        keys, values = (part[key_ends[number] : key_ends[number + 1]].transpose(0, 1) for part in (key, value))
        allowed = torch.ones(asked.shape[1], keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - asked.shape[1])
        parts.append(
            functional.scaled_dot_product_attention(
                asked, keys, values, attn_mask=allowed, scale=scale, enable_gqa=True
            )
        )
    return torch.cat(parts, dim=1).transpose(0, 1)


def test_the_layout_for_the_variable_length_kernel_gives_the_same_vectors(model_folder, monkeypatch):
    encoder = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    items = [encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)]
    encoder.close()
    monkeypatch.setattr(varlen, "varlen_attn", as_documented, raising=False)
    monkeypatch.setattr(varlen, "runs_on", lambda _: True)
    other = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    assert (cosines(other.encode_queries(TEXTS), items[0]) >= 0.99999).all()
    assert (cosines(other.encode_documents(TEXTS), items[1]) >= 0.99999).all()


class Adapted(nn.Linear):
    """As an adapter does, gives something else than the weight's product."""

    def forward(self, activations):
        return super().forward(activations).roll(1, -1)


@pytest.mark.parametrize("name", ["self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"])
def test_adapters_on_linear_layers_are_not_left_out(model_folder, name):
    model = SentenceTransformer(str(model_folder), device="cpu", model_kwargs={"dtype": torch.float32})
    before = model.encode(TEXTS)
    plain = model[0].auto_model.get_submodule(f"layers.0.{name}")
    adapted = Adapted(plain.in_features, plain.out_features, bias=False)
    adapted.weight = plain.weight
    model[0].auto_model.set_submodule(f"layers.0.{name}", adapted)
    expected = model.encode(TEXTS, batch_size=1)
    assert (cosines(before, expected) < 0.999).any()
    with pytest.raises(ValueError, match="without adapters"):
        PackedModel(model, quantized=True)
    tokenizer = model.tokenizer
    items = [Item(np.array(tokenizer(text)["input_ids"]), np.empty(0, np.int64)) for text in TEXTS]
    states = PackedModel(model).embed(items)
    assert (cosines(states / np.linalg.norm(states, axis=1, keepdims=True), expected) >= 0.99999).all()


def test_int8_keeps_the_directions(model_folder):
    exact = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    vectors = exact.replaced(quantization="int8").encode_documents(TEXTS)
    assert (cosines(vectors, exact.encode_documents(TEXTS)) > 0.99).all()
    # Texts of one token, on which the trained model's rounding weighs most; Cranfield loses nothing by it.
    tiny = Qwen3Encoder("tiny", dtype="float32", device="cpu")
    vectors = tiny.replaced(quantization="int8").encode_documents(TEXTS)
    assert (cosines(vectors, tiny.encode_documents(TEXTS)) > 0.97).all()
