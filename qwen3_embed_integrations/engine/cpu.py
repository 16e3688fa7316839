"""Modules that replace a model's own on a CPU: weights in oneDNN's layout, 8-bit integers, fewer passes over memory."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

if TYPE_CHECKING:
    from transformers import Qwen3Model

# oneDNN's fast kernels multiply unsigned activations by signed weights, so zero is moved to here.
_ZERO = 128

# More than the rounding of bfloat16 can take away.
_ROUNDED_UP = 1 + 2**-7


# Below this many numbers the calls take longer than the work, so that the fewest calls are best.
_FEW = 2**17


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
        if hidden.numel() <= _FEW:
            return functional.rms_norm(hidden, hidden.shape[-1:], self.weight, self._epsilon)
        exact = hidden.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse = length.square_().div_(hidden.shape[-1]).add_(self._epsilon).rsqrt_()
        normed: Tensor = (exact * inverse).to(hidden.dtype).mul_(self.weight)
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


def prepare(model: Qwen3Model, *, quantized: bool) -> None:
    """Replace a model's linear layers on a CPU; the embedding table and the norms stay as they are.

    Args:
        model: changed in place, left alone where it is elsewhere or where nothing is gained.
        quantized: whether to run the layers in int8.
    """
    if model.device.type != "cpu" or not (quantized or _packs(model.dtype)):
        return
    quantizer = TokenQuantizer()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Int8Linear(module, quantizer) if quantized else PackedLinear(module))
        elif isinstance(module, Qwen3RMSNorm):
            model.set_submodule(name, RMSNorm(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, Qwen3MLP) and model.config.hidden_act == "silu":
            model.set_submodule(name, GatedMLP(module))
