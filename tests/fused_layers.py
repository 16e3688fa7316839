"""Run by test_cuda: Triton's interpreter, which needs no GPU and has to be chosen before Triton is imported."""

from __future__ import annotations

import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.engine import cuda, packed
from qwen3_embed_integrations.engine.kernels import norm_and_rotate, silu_times
from tests.conftest import as_query, cosines

TEXTS = ["def f(x):", "a", "", "a longer text with some words in it", "a", "(x)", "\n", "x" * 100]


def main(folder: str) -> None:
    torch.manual_seed(0)
    # More heads than one program takes, and not a multiple of that; columns beside them that are not read.
    states, weight = torch.randn(5, 15 * 16), torch.rand(11, 16)
    cos, sin = (part.repeat(1, 2) for part in (torch.randn(5, 8), torch.randn(5, 8)))
    heads = states[:, : 11 * 16].view(5, 11, 16)
    normed = heads * (heads.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * weight
    expected = normed * cos[:, None] + rotate_half(normed) * sin[:, None]
    torch.testing.assert_close(norm_and_rotate(states, weight, cos, sin, 1e-3), expected)
    joined = torch.randn(3, 2 * 1100)
    gate, up = joined.chunk(2, dim=1)
    torch.testing.assert_close(silu_times(joined), gate * torch.sigmoid(gate) * up)

    plain = Qwen3Encoder(folder, dtype="float32", device="cpu")
    expected_vectors = plain.encode_documents([as_query(text) for text in TEXTS])
    plain.close()
    assert cuda.runs(torch.device("cpu"), torch.float32, 16)
    packed.cpu.prepare = lambda *_, **__: None
    packed.cuda.prepare = lambda model, attend: cuda.fuse(model, attend, kernels=True)
    fused = Qwen3Encoder(folder, dtype="float32", device="cpu")
    vectors = fused.encode_queries(TEXTS)
    layers = fused._engine().load()._model.layers
    assert [isinstance(layer, cuda.FusedLayer) for layer in layers] == [True, False]
    assert (cosines(vectors, expected_vectors) >= 0.99999).all()


if __name__ == "__main__":
    main(sys.argv[1])
