"""Modules that replace a model's own on a CPU: weights in oneDNN's layout, 8-bit integers, fewer passes over memory."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import Qwen3Model

# oneDNN's fast kernels multiply unsigned activations by signed weights, so zero is moved to here.
_ZERO = 128

# More than the rounding of bfloat16 can take away.
_ROUNDED_UP = 1 + 2**-7


# Below this many numbers the calls take longer than the work, so that the fewest calls are best.
_FEW = 2**17

# A float32 weight below this many numbers is laid out in less time than oneDNN takes to be called.
_SMALL_WEIGHT = 2**19


class PackedLinear(nn.Module):
    """A linear layer whose weight stays in the layout that oneDNN computes with.

    A plain layer has its weight laid out anew by each call, which takes a short text longer than the product itself.

    Args:
        linear: the layer to replace.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # A plain attribute: nothing that copies or converts a module's buffers understands this layout.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, activations: Tensor) -> Tensor:
        """Multiply.

        Args:
            activations: shape (..., in features).

        Returns:
            Shape (..., out features), in the type of the activations.
        """
        return self._then(activations, "none")

    def silu(self, activations: Tensor) -> Tensor:
        """Multiply, then apply SiLU in the same pass: shapes as in `forward`."""
        return self._then(activations, "swish")

    def times(self, activations: Tensor, factor: Tensor) -> Tensor:
        """Multiply, then multiply by the elements of `factor` in the same pass: shapes as in `forward`."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(activations, factor, self._weight, self._bias, "mul")
        return product

    def _then(self, activations: Tensor, operation: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(activations, self._weight, self._bias, operation, [], "")
        return product


class TokenQuantizer:
    """Rounds activations to int8 with one scale a token, so that a text's vector never depends on its neighbours.

    One scale for a whole tensor would: Qwen3's activations have large outliers. The layers of a model share one
    quantizer, so that what several of them read one after the other is rounded once.
    """

    def __init__(self) -> None:
        self._input: Tensor | None = None
        self._output: tuple[Tensor, Tensor] | None = None

    def __call__(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize activations.

        Args:
            activations: shape (..., width).

        Returns:
            uint8 tensor whose zero is 128, shape (tokens, width), and scales in the type of the activations,
            shape (tokens, 1).
        """
        if self._output is None or activations is not self._input:
            rows = activations.reshape(-1, activations.shape[-1])
            # Rounded up to the activations' own type before it divides, the scale multiplies back exactly.
            scales = rows.abs().amax(dim=1, keepdim=True).mul_(_ROUNDED_UP / 127).clamp_min_(1e-10)
            # Adding a half and cutting is rounding, since all values are positive by then.
            moved = (rows / scales.float()).add_(_ZERO + 0.5).to(torch.uint8)
            self._input, self._output = activations, (moved, scales)
        return self._output


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: weights scaled per channel, activations per token.

    On a processor without VNNI weights have 7 bits, as in onnxruntime's `reduce_range`
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        linear: the layer to replace.
        quantizer: shared by the layers of a model.
    """

    def __init__(self, linear: nn.Linear, quantizer: TokenQuantizer) -> None:
        super().__init__()
        weight, largest = linear.weight.detach().float(), _largest_packed()
        self._packed = largest is not None
        self._scales = weight.abs().amax(dim=1).clamp_min(1e-10) / (largest or 127)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None) if self._packed else rounded.t()
        self._zeros = torch.zeros(len(rounded), dtype=torch.long)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._quantizer = quantizer

    def forward(self, activations: Tensor) -> Tensor:
        """Multiply.

        Args:
            activations: shape (..., in features).

        Returns:
            Shape (..., out features), in the type of the activations.
        """
        rows, row_scales = self._quantizer(activations)
        if self._packed:
            product = _packed_product(rows, self._weight, self._scales, self._zeros, activations.dtype)
        else:
            signed = rows.bitwise_xor(_ZERO).view(torch.int8)
            # In place on float32: multiplying the int32 sums by floats directly takes ten times as long.
            product = torch._int_mm(signed, self._weight).float().mul_(self._scales).to(activations.dtype)
        product = product.mul_(row_scales)
        if self._bias is not None:
            product = product.add_(self._bias)
        return product.view(*activations.shape[:-1], -1)


def _packed_product(rows: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, _ZERO, weight, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return product


class GatedMLP(nn.Module):
    """Qwen3's MLP, its activation and product in the passes of the linear layers or in place.

    Args:
        mlp: the one to replace, whose linear layers were replaced already.
    """

    def __init__(self, mlp: Qwen3MLP) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute: shapes (..., hidden size) in and out."""
        if isinstance(self.gate_proj, PackedLinear) and isinstance(self.up_proj, PackedLinear):
            inner = self.up_proj.times(hidden, self.gate_proj.silu(hidden))
        else:
            inner = functional.silu(self.gate_proj(hidden), inplace=True).mul_(self.up_proj(hidden))
        result: Tensor = self.down_proj(inner)
        return result


class FusedAttention(nn.Module):
    """Qwen3's attention with one product for queries, keys and values, and one norm and rotation for the first two.

    Args:
        attention: the one to replace, whose linear layers were not replaced yet.
        attend: an attention function of transformers.
    """

    scales: Tensor

    def __init__(self, attention: Qwen3Attention, attend: Callable[..., tuple[Tensor, None]]) -> None:
        super().__init__()
        self.layer_idx, self.scaling, self._dim = attention.layer_idx, attention.scaling, attention.head_dim
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self._heads, self._kv_heads, _ = (part.out_features // self._dim for part in projections)
        self.qkv_proj, self.o_proj = _joined(projections), attention.o_proj
        norms = attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)
        self.scales, self._epsilon = torch.cat(norms).detach(), attention.q_norm.variance_epsilon
        self._attend = attend

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: None, **arguments: Any
    ) -> tuple[Tensor, None]:
        """Attend: shapes (1, tokens, hidden size) in and out, as in the module that it replaces."""
        query, key, value = self._project(hidden_states, *position_embeddings)
        output, _ = self._attend(self, query, key, value, attention_mask, scaling=self.scaling, **arguments)
        result: Tensor = self.o_proj(output.flatten(2))
        return result, None

    def _project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give rotated queries and keys, and values, each of shape (1, heads or KV heads, tokens, head dim)."""
        parts = self.qkv_proj(hidden).view(1, hidden.shape[1], -1, self._dim)
        asking, half = self._heads + self._kv_heads, self._dim // 2
        # A copy, so that the memory of what was projected is free once it is normed.
        value = parts[:, :, asking:].transpose(1, 2).contiguous()
        normed = rms_norm(parts[:, :, :asking], self.scales, self._epsilon)
        del parts
        cos, sin = cos[:, :, None], sin[:, :, None]
        rotated = normed * cos
        rotated[..., :half].addcmul_(normed[..., half:], sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(normed[..., :half], sin[..., half:])
        query, key = rotated.split_with_sizes([self._heads, self._kv_heads], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value


def _joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Put layers that read the same into one."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class RMSNorm(nn.Module):
    """Qwen3's norm without a second float32 copy of the activations: the same values.

    Args:
        norm: the one to replace.
    """

    weight: Tensor

    def __init__(self, norm: Qwen3RMSNorm) -> None:
        super().__init__()
        self.weight, self._epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over the last dimension."""
        return rms_norm(hidden, self.weight, self._epsilon)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise over the last dimension, then multiply by a weight that is broadcast."""
    if hidden.numel() <= _FEW:
        return functional.rms_norm(hidden, hidden.shape[-1:], None, epsilon).mul_(weight)
    exact = hidden.float()
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    inverse = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
    normed: Tensor = (exact * inverse).to(hidden.dtype).mul_(weight)
    return normed


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Try whether this torch and this processor run packed weights, and rightly."""
    # Nothing random: a library leaves its users' seeds alone.
    linear = nn.Linear(64, 32, bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
    rows = torch.linspace(-1, 1, 4 * 64).view(4, 64).to(dtype)
    with torch.inference_mode():
        linear.weight.copy_(torch.linspace(1, -1, 32 * 64).view(32, 64))
        try:
            return torch.allclose(PackedLinear(linear)(rows), linear(rows), rtol=0.02, atol=0.02)
        except (RuntimeError, AttributeError):
            return False


@cache
def _largest_packed() -> int | None:
    """Try up to which weight int8 products are exact; None where they never are, or there are none.

    Without VNNI, oneDNN adds pairs of products in 16 bits, where two of 255 * 127 saturate and two of 255 * 63 do not.
    """
    rows = torch.full((4, 64), 255, dtype=torch.uint8)
    ones, zeros = torch.ones(32), torch.zeros(32, dtype=torch.long)
    with torch.inference_mode():
        for largest in (127, 63):
            weight = torch.full((32, 64), largest, dtype=torch.int8)
            try:
                packed = torch.ops.onednn.qlinear_prepack(weight, None)
                product = _packed_product(rows, packed, ones, zeros, torch.float32)
            except (RuntimeError, AttributeError):
                return None
            if (product == 64 * (255 - _ZERO) * largest).all():
                return largest
    return None


def _is_small(linear: nn.Linear) -> bool:
    return linear.weight.dtype == torch.float32 and linear.weight.numel() < _SMALL_WEIGHT


def prepare(model: Qwen3Model, attend: Callable[..., tuple[Tensor, None]], *, quantized: bool) -> None:
    """Replace a model's layers on a CPU; the embedding table and the norms' weights stay as they are.

    Args:
        model: changed in place, left alone where it is elsewhere or where nothing is gained.
        attend: an attention function of transformers.
        quantized: whether to run the layers in int8.
    """
    if model.device.type != "cpu" or not (quantized or _packs(model.dtype)):
        return
    # In the last layer, queries are of fewer tokens than keys and values.
    for layer in list(model.layers)[:-1]:
        layer.self_attn = FusedAttention(cast("Qwen3Attention", layer.self_attn), attend)
    quantizer = TokenQuantizer()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and quantized:
            model.set_submodule(name, Int8Linear(module, quantizer))
        elif isinstance(module, nn.Linear) and not _is_small(module):
            model.set_submodule(name, PackedLinear(module))
        elif isinstance(module, Qwen3RMSNorm):
            model.set_submodule(name, RMSNorm(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, Qwen3MLP) and model.config.hidden_act == "silu":
            model.set_submodule(name, GatedMLP(module))
