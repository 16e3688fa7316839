"""Modules that replace a model's own on CUDA: few and large matrix products, and one pass over memory between them."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm

from qwen3_embed_integrations.engine.cpu import is_plain, joined

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Qwen3Model

logger = logging.getLogger(__name__)


class FusedLayer(nn.Module):
    """Qwen3's layer with one product for queries, keys and values, one for gate and up, and Triton's kernels between.

    Args:
        layer: the one to replace.
        attend: an attention function of transformers.
    """

    def __init__(self, layer: Qwen3DecoderLayer, attend: Callable[..., tuple[Tensor, None]]) -> None:
        from qwen3_embed_integrations.engine.kernels import norm_and_rotate, silu_times

        super().__init__()
        self._norm_and_rotate, self._silu_times = norm_and_rotate, silu_times
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx, self.scaling, self._dim = attention.layer_idx, attention.scaling, attention.head_dim
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self._heads, self._kv_heads, _ = (part.out_features // self._dim for part in projections)
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv_proj, self.o_proj = joined(projections), attention.o_proj
        self.gate_up_proj, self.down_proj = joined((mlp.gate_proj, mlp.up_proj)), mlp.down_proj
        norms = attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)
        self._norm, self._epsilon = torch.cat(norms).detach(), attention.q_norm.variance_epsilon
        self._attend = attend

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], **arguments: Any) -> Tensor:
        """Compute, in place.

        Args:
            hidden: the layer's input, shape (1, tokens, hidden size).
            rotary: cosines and sines of the positions, each of shape (1, tokens, head dim).
            **arguments: of the attention function.

        Returns:
            The same tensor, which holds the layer's output now.
        """
        rows = hidden[0]
        parts = self.qkv_proj(self.input_layernorm(rows))
        rotated = self._norm_and_rotate(parts, self._norm, rotary[0][0], rotary[1][0], self._epsilon)
        query, key = rotated.split_with_sizes([self._heads, self._kv_heads], dim=1)
        value = parts.view(len(rows), -1, self._dim)[:, self._heads + self._kv_heads :]
        states = (part.transpose(0, 1)[None] for part in (query, key, value))
        output, _ = self._attend(self, *states, None, scaling=self.scaling, **arguments)
        _add_product(rows, output[0].flatten(1), self.o_proj)
        _add_product(rows, self._silu_times(self.gate_up_proj(self.post_attention_layernorm(rows))), self.down_proj)
        return hidden


def _add_product(rows: Tensor, inner: Tensor, linear: nn.Linear) -> None:
    """Add a linear layer's output to rows, in the pass of its matrix product."""
    rows.addmm_(inner, linear.weight.t())
    if linear.bias is not None:
        rows.add_(linear.bias)


@cache
def runs(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """Try whether the kernels run there, and rightly: they need Triton and a C compiler.

    Args:
        device: where.
        dtype: of the activations.
        dim: of a head; the kernels want a power of two.

    Returns:
        Whether they do.
    """
    # Nothing random: a library leaves its users' seeds alone.
    states = torch.linspace(-2, 2, 3 * 4 * dim, device=device).view(3, 4 * dim).to(dtype)
    weight = torch.linspace(0.5, 1.5, 3 * dim, device=device).view(3, dim).to(dtype)
    angles = torch.linspace(0, 3, 3 * (dim // 2), device=device).view(3, dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    try:
        from qwen3_embed_integrations.engine.kernels import norm_and_rotate, silu_times

        found = norm_and_rotate(states, weight, cos, sin, 1e-6), silu_times(states)
    except Exception as error:  # whatever a compiler that is not there, or does not know the device, may raise
        logger.warning("Triton's kernels do not run on %s, so embedding takes longer there: %s", device, error)
        return False
    normed = functional.rms_norm(states[:, : 3 * dim].float().view(3, 3, dim), (dim,), eps=1e-6) * weight
    left, right = normed.chunk(2, dim=-1)
    gate, up = states.float().chunk(2, dim=1)
    rotated = normed * cos[:, None] + torch.cat([-right, left], dim=-1) * sin[:, None]
    expected = rotated, functional.silu(gate) * up
    exact = all(
        torch.allclose(*pair, rtol=0.02, atol=0.02) for pair in zip(map(Tensor.float, found), expected, strict=True)
    )
    if not exact:
        logger.warning("Triton's kernels are wrong on %s, so embedding takes longer there, without them", device)
    return exact


def prepare(model: Qwen3Model, attend: Callable[..., tuple[Tensor, None]]) -> None:
    """Replace a model's layers on CUDA.

    Args:
        model: changed in place, left alone where it is elsewhere.
        attend: an attention function of transformers.
    """
    if model.device.type != "cuda":
        return
    # Triton launches on the current device, whatever the tensors' is.
    with torch.inference_mode(), torch.cuda.device(model.device):
        fitting = model.config.hidden_act == "silu" and is_plain(model)
        fuse(model, attend, kernels=fitting and runs(model.device, model.dtype, model.config.head_dim))
        # The memory of the weights that were joined.
        torch.cuda.empty_cache()


def fuse(model: Qwen3Model, attend: Callable[..., tuple[Tensor, None]], *, kernels: bool) -> None:
    """Replace a model's layers, and its norms by torch's own.

    Args:
        model: changed in place.
        attend: an attention function of transformers.
        kernels: whether Triton's run; without them the layers stay.
    """
    if kernels:
        # In the last layer, queries are of fewer tokens than keys and values.
        for index in range(len(model.layers) - 1):
            model.layers[index] = FusedLayer(cast("Qwen3DecoderLayer", model.layers[index]), attend)
    for name, module in list(model.named_modules()):
        if isinstance(module, Qwen3RMSNorm):
            norm = nn.RMSNorm(len(module.weight), module.variance_epsilon, device="meta")
            norm.weight = module.weight
            model.set_submodule(name, norm)
