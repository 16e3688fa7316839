"""What runs on CUDA: the kernels in Triton's interpreter anywhere, all the rest on a GPU where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.engine import cuda, engine, varlen
from tests.conftest import as_query, cosines

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")

TEXTS = ["def f(x):", "a", "", "a longer text with some words in it", "a", "(x)", " blank", "\n", "x" * 500, "中文"]
TEXTS += [f"text number {number} {'word ' * (number % 37)}" for number in range(60)]

# What rounding to a type may leave of a cosine.
LEAST = {"float32": 0.99999, "bfloat16": 0.999, "float16": 0.9999}


@pytest.fixture(scope="module")
def expected():
    """Queries and documents on the CPU in float32, which other tests compare with plain transformers."""
    encoder = Qwen3Encoder("tiny", dtype="float32", device="cpu")
    return encoder.encode_documents([as_query(text) for text in TEXTS]), encoder.encode_documents(TEXTS)


@pytest.fixture
def encoder():
    encoder = Qwen3Encoder("tiny", dtype="bfloat16", device="cuda")
    yield encoder
    encoder.close()


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_without_a_gpu(capability):
    pytest.importorskip("triton", minversion="3.4")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from qwen3_embed_integrations.engine import kernels

    half = dict.fromkeys(("states", "weight", "cos", "sin", "joined", "out"), "*bf16")
    types = {**half, "row": "i32", "heads": "i32", "width": "i32", "epsilon": "fp32"}
    for kernel, sizes in (
        (kernels._norm_and_rotate, {"dim": 128, "block": kernels._HEADS_AT_ONCE}),
        (kernels._silu_times, {"block": kernels._COLUMNS_AT_ONCE}),
    ):
        signature = {name: "constexpr" if name in sizes else types[name] for name in kernel.arg_names}
        source = ASTSource(kernel, signature, sizes)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in compiled.asm["ptx"]


def test_the_kernels_and_the_fused_layer_give_what_the_model_gives(model_folder):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.fused_layers", str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_without_triton_it_is_said_once_and_done_without(caplog, model_folder, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "qwen3_embed_integrations.engine.kernels", None)
    cuda.runs.cache_clear()
    assert not cuda.runs(torch.device("cpu"), torch.float32, 64)
    assert not cuda.runs(torch.device("cpu"), torch.float32, 64)
    cuda.runs.cache_clear()
    assert ["Triton's kernels do not run on cpu" in record.message for record in caplog.records] == [True]
    expected = Qwen3Encoder(model_folder, dtype="float32", device="cpu").encode_queries(TEXTS)
    monkeypatch.setattr("qwen3_embed_integrations.engine.cpu.prepare", lambda *_, **__: None)
    monkeypatch.setattr(cuda, "prepare", lambda model, attend: cuda.fuse(model, attend, kernels=False))
    own = shutil.copytree(model_folder, tmp_path / "own")
    without = Qwen3Encoder(own, dtype="float32", device="cpu")
    kinds = {type(module) for module in without._engine().load()._model.modules()}
    assert torch.nn.RMSNorm in kinds
    assert not kinds & {Qwen3RMSNorm, cuda.FusedLayer}
    assert (cosines(without.encode_queries(TEXTS), expected) >= 0.99999).all()


@on_gpu
@pytest.mark.parametrize("dtype", LEAST)
def test_vectors_are_those_of_the_cpu(dtype, expected):
    encoder = Qwen3Encoder("tiny", dtype=dtype, device="cuda")
    assert (cosines(encoder.encode_queries(TEXTS), expected[0]) >= LEAST[dtype]).all()
    assert (cosines(encoder.encode_documents(TEXTS), expected[1]) >= LEAST[dtype]).all()
    assert encoder._engine().load()._model.device.type == "cuda"


@on_gpu
def test_a_gpu_is_what_is_used_by_default():
    encoder = Qwen3Encoder("tiny")
    assert encoder.device == "cuda:0"
    bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    assert encoder.dtype == ("bfloat16" if bfloat16 else "float32")
    with pytest.raises(ValueError, match="runs on the CPU only"):
        Qwen3Encoder("tiny", device="cuda", quantization="int8").encode_documents(["x"])


@on_gpu
def test_a_vector_does_not_depend_on_its_neighbours(encoder):
    alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    # Products of other sizes add up in another order.
    assert (cosines(encoder.encode_queries(TEXTS), alone) >= 0.9999).all()
    assert (cosines(encoder.replaced(batch_tokens=100).encode_queries(TEXTS), alone) >= 0.9999).all()


@on_gpu
def test_the_kernels_change_nothing_but_rounding(encoder, expected, monkeypatch):
    assert isinstance(encoder._engine().load()._model.layers[0], cuda.FusedLayer)
    encoder.close()
    monkeypatch.setattr(cuda, "runs", lambda *_: False)
    assert not isinstance(encoder._engine().load()._model.layers[0], cuda.FusedLayer)
    assert (cosines(encoder.encode_queries(TEXTS), expected[0]) >= LEAST["bfloat16"]).all()


@on_gpu
@pytest.mark.skipif(not varlen._HAS_KERNEL, reason="needs a torch that has the kernel")
def test_attention_in_one_call_is_attention_text_by_text(encoder, monkeypatch):
    assert varlen.runs_on(torch.zeros(1, 64, dtype=torch.bfloat16, device="cuda"))
    in_one_call = encoder.encode_queries(TEXTS), encoder.encode_documents(TEXTS)
    monkeypatch.setattr(varlen, "runs_on", lambda _: False)
    assert (cosines(in_one_call[0], encoder.encode_queries(TEXTS)) >= 0.9999).all()
    assert (cosines(in_one_call[1], encoder.encode_documents(TEXTS)) >= 0.9999).all()


@on_gpu
def test_callers_at_once_and_replicas_get_their_own_vectors(encoder, expected):
    replicas = Qwen3Encoder("tiny", dtype="bfloat16", device=["cuda:0", "cuda:0"], batch_tokens=64)
    assert (cosines(replicas.encode_documents(TEXTS), expected[1]) >= LEAST["bfloat16"]).all()
    for shared in (encoder, replicas):
        with ThreadPoolExecutor(16) as pool:
            vectors = np.stack(list(pool.map(lambda text, to=shared: to.encode_queries([text])[0], TEXTS)))
        assert (cosines(vectors, expected[0]) >= LEAST["bfloat16"]).all()


@on_gpu
def test_a_model_that_is_split_by_accelerate(expected):
    parts = dict.fromkeys(("embed_tokens", "layers.0", "layers.2", "norm", "rotary_emb"), 0)
    split = Qwen3Encoder("tiny", dtype="bfloat16", device_map={**parts, "layers.1": "cpu"})
    assert split._engine().load()._split
    assert (cosines(split.encode_queries(TEXTS), expected[0]) >= LEAST["bfloat16"]).all()


@on_gpu
def test_what_does_not_fit_is_halved_until_it_does(encoder):
    encoder.encode_documents(["x"])
    texts = [f"{text} {number}" for number in range(500) for text in TEXTS]
    torch.cuda.empty_cache()
    allowed, total = torch.cuda.memory_reserved() + 200 * 2**20, torch.cuda.mem_get_info()[1]
    refused = torch.cuda.memory_stats()["num_ooms"]
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        vectors = encoder.replaced(batch_tokens=2**20).encode_documents(texts)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.cuda.memory_stats()["num_ooms"] > refused
    in_company = encoder.encode_documents(texts)
    assert (cosines(vectors, in_company) >= 0.9999).all()


@on_gpu
def test_the_budget_follows_the_free_memory(encoder):
    settings = encoder._engine().settings
    torch.cuda.empty_cache()
    assert engine._budget(settings) == engine._BATCH_TOKENS_ACCELERATOR
    held = torch.empty(torch.cuda.mem_get_info()[0] - 100 * 2**20, dtype=torch.uint8, device="cuda")
    assert engine._BATCH_TOKENS_LEAST <= engine._budget(settings) < engine._BATCH_TOKENS_ACCELERATOR
    # Now torch keeps that memory, and it is free to the next group.
    del held
    assert engine._budget(settings) == engine._BATCH_TOKENS_ACCELERATOR
    torch.cuda.empty_cache()


@on_gpu
def test_a_text_as_long_as_the_context(encoder):
    text = "every word counts here " * 8000
    assert encoder.count_tokens([text]) > [32_000]
    on_cpu = Qwen3Encoder("tiny", dtype="float32", device="cpu").encode_documents([text])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    vectors = encoder.encode_documents([text, "short"])
    # In a padded batch the mask alone would take 2 GiB.
    assert torch.cuda.max_memory_allocated() - before < 2**29
    assert cosines(vectors[0], on_cpu[0]) >= LEAST["bfloat16"]


@on_gpu
def test_closing_gives_the_memory_back(encoder):
    # Once before, for what the matrix products keep for ever.
    encoder.encode_queries(TEXTS)
    encoder.close()
    before = torch.cuda.memory_allocated()
    encoder.encode_queries(TEXTS)
    assert torch.cuda.memory_allocated() > before + 2**20
    encoder.close()
    assert torch.cuda.memory_allocated() <= before + 2**20
