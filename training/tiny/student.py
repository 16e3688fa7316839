"""The student: a Qwen3Model that begins as a mean of token vectors, and its forward pass for training."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3Config, Qwen3Model

from qwen3_embed_integrations.engine.engine import resolve_dtype
from training.tiny.instructions import format_query
from training.tiny.tokenizer import END

if TYPE_CHECKING:
    from pathlib import Path

HIDDEN = 256
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
# The last dimension is the same large number in every token vector, and 0 in the embedding. RMSNorm then
# divides all tokens by about the same number, so a frequent word's short vector stays short in the mean.
CONSTANT_DIM = HIDDEN - 1
CONSTANT = 16.0
TOKEN_RMS = 0.5
# Of teacher and student: bf16 where the processor computes with it, since elsewhere float32 is faster.
DTYPE: torch.dtype = getattr(torch, resolve_dtype("auto", "cpu"))


def config(vocabulary: int, layers: int, intermediate: int) -> Qwen3Config:
    """Give the student's configuration."""
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=32768,
        rope_theta=1_000_000.0,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def initialise(model: Qwen3Model, tokens: Tensor) -> None:
    """Set the weights so that the embedding of a text is the mean of its tokens' vectors.

    The lower layers add nothing at first: what they write into the residual stream starts at zero. In the
    last layer the end token attends to all tokens almost evenly, and its values pass through unchanged.

    Args:
        model: a fresh model.
        tokens: shape (vocabulary, 255), a vector for each token, as long as its word weighs in the mean.
    """
    scale = TOKEN_RMS / tokens.pow(2).mean().sqrt()
    with torch.no_grad():
        table = model.embed_tokens.weight
        table[:, :CONSTANT_DIM] = tokens * scale
        table[:, CONSTANT_DIM] = CONSTANT
        model.norm.weight[CONSTANT_DIM] = 0.0
        for layer in model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.fill_(1.5)
                norm.weight[CONSTANT_DIM] = 0.3
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj,
                           layer.mlp.gate_proj, layer.mlp.up_proj):  # fmt: skip
                nn.init.normal_(linear.weight, std=0.06)
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
        last = model.layers[-1].self_attn
        last.q_norm.weight.fill_(0.1)
        last.v_proj.weight.copy_(torch.eye(HIDDEN))
        last.v_proj.weight[CONSTANT_DIM] = 0.0
        group = HEADS // KV_HEADS
        for head in range(HEADS):
            values = slice((head // group) * HEAD_DIM, (head // group + 1) * HEAD_DIM)
            last.o_proj.weight[values, head * HEAD_DIM : (head + 1) * HEAD_DIM] = torch.eye(HEAD_DIM) * 8.0 / group


def turn(model: Qwen3Model, change: Tensor) -> None:
    """Change the basis of everything between the layers, so that embeddings come out multiplied by a matrix.

    It is exact for a rotation and close for other matrices, since the constant dimension rules RMSNorm's divisor.

    Args:
        model: the student.
        change: shape (256, 256), one on the diagonal for the constant dimension and zero beside it.
    """
    with torch.no_grad():
        back = torch.linalg.inv(change)
        content = torch.arange(HIDDEN) != CONSTANT_DIM
        # The final norm's gains, nearly equal by then, become equal: others would belong to the old basis.
        model.norm.weight[content] = model.norm.weight[content].mean()
        model.embed_tokens.weight.copy_(model.embed_tokens.weight @ change)
        for layer in model.layers:
            reading = (
                (layer.input_layernorm, (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)),
                (layer.post_attention_layernorm, (layer.mlp.gate_proj, layer.mlp.up_proj)),
            )
            for norm, linears in reading:
                for linear in linears:
                    linear.weight.copy_(linear.weight * norm.weight @ back.T)
                norm.weight.fill_(1.0)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(change.T @ linear.weight)


def _rotary(length: int, theta: float) -> tuple[Tensor, Tensor]:
    frequencies = theta ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
    return angles.cos().to(DTYPE), angles.sin().to(DTYPE)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def _norm(x: Tensor, module: nn.Module) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], module.weight.to(DTYPE), module.variance_epsilon)


def _linear(x: Tensor, module: nn.Linear) -> Tensor:
    return functional.linear(x, module.weight.to(DTYPE))


def embed(model: Qwen3Model, ids: Tensor, ends: Tensor) -> Tensor:
    """Run the model as in training: in `DTYPE`, padded on the right, and the last layer for the end tokens only.

    Args:
        model: the student, in float32.
        ids: token ids, shape (batch, length), padded on the right, which causal attention never sees.
        ends: each text's last position, shape (batch,).

    Returns:
        The end tokens' final states, not normalised, float32, shape (batch, hidden).
    """
    x = model.embed_tokens(ids).to(DTYPE)
    batch, length, _ = x.shape
    rows = torch.arange(batch)
    group = HEADS // KV_HEADS
    cos, sin = _rotary(length, model.config.rope_parameters["rope_theta"])
    last = len(model.layers) - 1
    for index, layer in enumerate(model.layers):
        attention = layer.self_attn
        h = _norm(x, layer.input_layernorm)
        k = _linear(h, attention.k_proj).view(batch, length, KV_HEADS, HEAD_DIM)
        k = _rotate(_norm(k, attention.k_norm).transpose(1, 2), cos, sin)
        v = _linear(h, attention.v_proj).view(batch, length, KV_HEADS, HEAD_DIM).transpose(1, 2)
        if index == last:
            x, h = x[rows, ends], h[rows, ends]
            q = _norm(_linear(h, attention.q_proj).view(batch, HEADS, HEAD_DIM), attention.q_norm)
            q = _rotate(q, cos[ends][:, None], sin[ends][:, None]).view(batch, KV_HEADS, group, HEAD_DIM)
            scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(HEAD_DIM)
            padding = torch.arange(length)[None] > ends[:, None]
            weights = scores.masked_fill(padding[:, None, None], -torch.inf).softmax(-1).to(DTYPE)
            mixed = (weights @ v).reshape(batch, HEADS * HEAD_DIM)
        else:
            q = _linear(h, attention.q_proj).view(batch, length, HEADS, HEAD_DIM)
            q = _rotate(_norm(q, attention.q_norm).transpose(1, 2), cos, sin)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            mixed = mixed.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)
        x = x + _linear(mixed, attention.o_proj)
        h = _norm(x, layer.post_attention_layernorm)
        h = functional.silu(_linear(h, layer.mlp.gate_proj)) * _linear(h, layer.mlp.up_proj)
        x = x + _linear(h, layer.mlp.down_proj)
    return functional.rms_norm(x.float(), x.shape[-1:], model.norm.weight, model.norm.variance_epsilon)


def save(model: Qwen3Model, tokenizer_path: Path, folder: Path) -> None:
    """Write the model folder that sentence-transformers loads: bf16 weights, tokenizer, pooling and prompts.

    Args:
        model: the student.
        tokenizer_path: its tokenizer.json.
        folder: where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = Qwen3Model(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    if tokenizer_path != folder / "tokenizer.json":
        (folder / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    files = {
        # transformers 5 writes it inside rope_parameters alone, transformers 4 and most servers read it here.
        "config.json": {**config, "rope_theta": config["rope_parameters"]["rope_theta"]},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,
            "pad_token": END,
            "model_max_length": 32768,
            "padding_side": "left",
        },
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(
                (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
            )
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": format_query(""), "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
