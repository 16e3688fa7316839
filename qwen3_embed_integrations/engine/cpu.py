"""Modules that replace a model's own on a CPU: weights laid out once, 8-bit integers, fewer passes over memory."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from transformers import Qwen3Model

# oneDNN's fast kernels multiply unsigned activations by signed weights, so zero is moved to here.
_ZERO = 128

# More than the rounding of bfloat16 can take away.
_ROUNDED_UP = 1 + 2**-7

# Of a layer's largest weight: float16 takes less from bfloat16's smallest values, and more from float32's.
_ROUNDED_OFF = 2**-18

# A float32 weight below this many numbers is laid out in less time than a call of oneDNN takes.
_SMALL_WEIGHT = 2**19

# More rows than a usual group has, and how many of them are then computed at once.
_MANY_ROWS = 2048
_ROWS_AT_ONCE = 512

# Up to so many rows, one thread multiplies by such a weight in FBGEMM faster than two do in a plain layer.
_FEW_ROWS = 16


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


class HalfLinear(nn.Module):
    """A linear layer in float32 whose weight takes 16 bits, in FBGEMM's layout: half as much to read.

    Products and sums are float32 ones: float16 holds most of bfloat16's values, in which Qwen3's weights are published.

    Args:
        linear: the layer to replace, for which `fits` is true.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self._weight = torch.ops.quantized.linear_prepack_fp16(linear.weight.detach(), bias)

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """Tell whether a layer is in float32 and has weights that float16 holds."""
        weight = linear.weight.detach()
        if weight.dtype != torch.float32:
            return False
        return bool((weight.half() - weight).abs().max() <= weight.abs().max() * _ROUNDED_OFF)

    def forward(self, activations: Tensor) -> Tensor:
        """Multiply: float32 tensors, shapes (..., in features) and (..., out features)."""
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(activations, self._weight)
        return product


class SmallHalfLinear(nn.Module):
    """As `HalfLinear` on a few rows, without its call's cost and on the caller's thread alone; else a plain layer.

    Args:
        linear: the layer to replace, for which `HalfLinear.fits` is true.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._plain, self._bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        self._weight = torch.fbgemm_pack_gemm_matrix_fp16(self._plain)

    def forward(self, activations: Tensor) -> Tensor:
        """Multiply: float32 tensors, shapes (..., in features) and (..., out features)."""
        if activations.numel() > _FEW_ROWS * activations.shape[-1]:
            return functional.linear(activations, self._plain, self._bias)
        return torch.fbgemm_linear_fp16_weight_fp32_activation(activations, self._weight, self._bias)


class TokenQuantizer:
    """Scales activations to 8-bit integers by token, so that a text's vector never depends on its neighbours.

    One scale for a whole tensor would: Qwen3's activations have large outliers. The layers of a model share one
    quantizer, so that what several of them read one after the other is scaled once.

    Args:
        rounds: whether to round them, too; some products do so by themselves (`Product`).
    """

    def __init__(self, *, rounds: bool) -> None:
        self._rounds = rounds
        self._input: Tensor | None = None
        self._output: tuple[Tensor, Tensor] | None = None

    def __call__(self, activations: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize activations.

        Args:
            activations: shape (..., width).

        Returns:
            Shape (tokens, width): uint8 tensor whose zero is 128, or, not rounded, float32 tensor from -127 to 127.
            And scales in the type of the activations, shape (tokens, 1).
        """
        if self._output is None or activations is not self._input:
            rows = activations.reshape(-1, activations.shape[-1])
            # Rounded up to the activations' own type before it divides, the scale multiplies back exactly.
            scales = rows.abs().amax(dim=1, keepdim=True).mul_(_ROUNDED_UP / 127).clamp_min_(1e-10)
            scaled = rows / scales.float()
            if self._rounds:
                # Adding a half and cutting is rounding, since all values are positive by then.
                scaled = scaled.add_(_ZERO + 0.5).to(torch.uint8)
            self._input, self._output = activations, (scaled, scales)
        return self._output


class OneDNNProduct:
    """Products of uint8 rows, whose zero is 128, and int8 weights in oneDNN.

    Args:
        weight: int8 tensor, shape (out features, in features).
        scales: of its rows, shape (out features,).
    """

    rounds = False

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        self._weight, self._scales = torch.ops.onednn.qlinear_prepack(weight, None), scales
        self._zeros = torch.zeros(len(weight), dtype=torch.long)

    def __call__(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply: shapes (tokens, in features) and (tokens, out features), the result scaled and in `dtype`."""
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows, 1.0, _ZERO, self._weight, self._scales, self._zeros, None, 1.0, 0, dtype, "none", [], ""
        )
        return product


class FBGEMMProduct:
    """Products of float32 rows, which are rounded as they are laid out, and int8 weights in FBGEMM.

    Args:
        weight: int8 tensor, shape (out features, in features).
        scales: of its rows, shape (out features,).
    """

    rounds = True

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        zeros = torch.zeros(len(weight), dtype=torch.long)
        quantized = torch._make_per_channel_quantized_tensor(weight, scales, zeros, 0)
        self._weight = torch.ops.quantized.linear_prepack(quantized, None)

    def __call__(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply: shapes (tokens, in features) and (tokens, out features), the result scaled and in `dtype`."""
        product: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(
            rows, 1.0, _ZERO, self._weight
        )
        return product.to(dtype)


class PlainProduct:
    """Products of uint8 rows, whose zero is 128, and int8 weights where the others do not run.

    Args:
        weight: int8 tensor, shape (out features, in features).
        scales: of its rows, shape (out features,).
    """

    rounds = False

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        self._weight, self._scales = weight.t(), scales

    def __call__(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply: shapes (tokens, in features) and (tokens, out features), the result scaled and in `dtype`."""
        signed = rows.bitwise_xor(_ZERO).view(torch.int8)
        # In place on float32: multiplying the int32 sums by floats directly takes ten times as long.
        return torch._int_mm(signed, self._weight).float().mul_(self._scales).to(dtype)


# Those that round rows by themselves say so (`rounds`) and take scaled float32 ones.
Product = OneDNNProduct | FBGEMMProduct | PlainProduct


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
        product, largest = int8_product()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-10) / largest
        self._product = product((weight / scales[:, None]).round().to(torch.int8), scales)
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
        product = self._product(rows, activations.dtype).mul_(row_scales)
        if self._bias is not None:
            product = product.add_(self._bias)
        return product.view(*activations.shape[:-1], -1)


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

    def __init__(self, attention: Qwen3Attention, attend: Callable[..., tuple[Tensor, None]]) -> None:
        super().__init__()
        self.layer_idx, self.scaling, self._dim = attention.layer_idx, attention.scaling, attention.head_dim
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        self._heads, self._kv_heads, _ = (part.out_features // self._dim for part in projections)
        self.qkv_proj, self.o_proj = joined(projections), attention.o_proj
        norms = attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)
        self.norm = RMSNorm(torch.cat(norms), attention.q_norm.variance_epsilon)
        self._attend = attend

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], attention_mask: None, **arguments: Any
    ) -> tuple[Tensor, None]:
        """Attend: shapes (1, tokens, hidden size) in and out, as in the module that it replaces."""
        query, key, value = self._project(hidden_states, *position_embeddings)
        output, _ = self._attend(self, query, key, value, attention_mask, scaling=self.scaling, **arguments)
        del query, key, value
        result: Tensor = self.o_proj(output.flatten(2))
        return result, None

    def _project(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Sequence[Tensor]:
        """Give rotated queries and keys, and values, each of shape (1, heads or KV heads, tokens, head dim)."""
        if len(slices := row_slices(hidden)) == 1:
            return self._project_rows(hidden, cos, sin)
        counts = self._heads, self._kv_heads, self._kv_heads
        whole = [hidden.new_empty(1, count, hidden.shape[1], self._dim) for count in counts]
        for rows in slices:
            for states, part in zip(
                whole, self._project_rows(hidden[:, rows], cos[:, rows], sin[:, rows]), strict=True
            ):
                states[:, :, rows] = part
        return whole

    def _project_rows(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.qkv_proj(hidden).view(1, hidden.shape[1], -1, self._dim)
        asking, half = self._heads + self._kv_heads, self._dim // 2
        # A copy, so that the memory of what was projected is free once it is normed.
        value = parts[:, :, asking:].transpose(1, 2).contiguous()
        normed = self.norm(parts[:, :, :asking])
        del parts
        cos, sin = cos[:, :, None], sin[:, :, None]
        rotated = normed * cos
        rotated[..., :half].addcmul_(normed[..., half:], sin[..., :half], value=-1)
        rotated[..., half:].addcmul_(normed[..., :half], sin[..., half:])
        query, key = rotated.split_with_sizes([self._heads, self._kv_heads], dim=2)
        return query.transpose(1, 2), key.transpose(1, 2), value


def row_slices(hidden: Tensor) -> list[slice]:
    """Cut what is computed row by row, so that on a CPU a long text takes no memory beside what has to be whole.

    Args:
        hidden: shape (1, tokens, width).

    Returns:
        Slices of the tokens: one, unless they are many.
    """
    tokens = hidden.shape[1]
    step = _ROWS_AT_ONCE if hidden.device.type == "cpu" and tokens > _MANY_ROWS else tokens
    return [slice(start, start + step) for start in range(0, tokens, step)]


def joined(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Put linear layers that read the same into one.

    Args:
        linears: weights of shape (out features, in features) each; all with a bias, or all without.

    Returns:
        A layer whose output is theirs, side by side: shape (..., sum of out features).
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return joined


class RMSNorm(nn.Module):
    """Qwen3's norm in fewer passes, and without a second float32 copy of the activations.

    Args:
        weight: shape (..., width), broadcast over what is normalised.
        epsilon: added to the mean square.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        width = weight.shape[-1]
        self.weight, self._least, self._scale = weight.detach(), torch.tensor((width * epsilon) ** 0.5), width**-0.5

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise over the last dimension: shapes (..., width) in and out."""
        exact = hidden.float()
        length: Tensor = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        return (exact / length.hypot_(self._least).mul_(self._scale)).to(hidden.dtype).mul_(self.weight)


def is_plain(model: Qwen3Model) -> bool:
    """Tell whether a model's linear layers are all torch's own: what adds to one (LoRA, say) would be left out.

    Args:
        model: any.

    Returns:
        Whether they are, in the model's type.
    """
    linears = [
        part
        for name, part in cast("nn.Module", model.layers).named_modules()
        if name.endswith(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    ]
    return all(type(part) is nn.Linear and part.weight.dtype == model.dtype for part in linears)


@cache
def _runs(replacement: type[nn.Module], dtype: torch.dtype) -> bool:
    """Try whether a kind of linear layer runs with this torch on this processor, and rightly."""
    # Nothing random: a library leaves its users' seeds alone.
    linear = nn.Linear(64, 32, bias=False, dtype=dtype, device="meta").to_empty(device="cpu")
    rows = torch.linspace(-1, 1, 4 * 64).view(4, 64).to(dtype)
    with torch.inference_mode(), _without_warnings():
        linear.weight.copy_(torch.linspace(1, -1, 32 * 64).view(32, 64).bfloat16())
        try:
            return torch.allclose(replacement(linear)(rows), linear(rows), rtol=0.02, atol=0.02)
        except (RuntimeError, AttributeError, TypeError):
            return False


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide that parts of torch will go, which it says once a process: what is tried here is seen to be gone then."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*deprecated and will be removed", UserWarning)
        yield


@cache
def int8_product() -> tuple[type[Product], int]:
    """Find what multiplies 8-bit integers exactly here, and fastest.

    Returns:
        The class, and the largest weight: 127, or 63 where only such are exact.
    """
    # Where oneDNN needs 63, it takes more than twice as long as FBGEMM for a query.
    candidates: list[tuple[type[Product], int]] = [(OneDNNProduct, 127), (FBGEMMProduct, 63), (OneDNNProduct, 63)]
    return next((found for found in candidates if is_exact(*found)), (PlainProduct, 127))


def is_exact(product: type[Product], largest: int) -> bool:
    """Try whether products of the largest numbers are exact.

    Without VNNI pairs of them are added in 16 bits, in which two of 255 * 127 saturate and two of 255 * 63 do not.

    Args:
        product: what multiplies.
        largest: weight.

    Returns:
        Whether they are; False where this torch or this processor does not have them.
    """
    rows = torch.full((4, 64), 127.0) if product.rounds else torch.full((4, 64), 255, dtype=torch.uint8)
    weight = torch.full((32, 64), largest, dtype=torch.int8)
    with torch.inference_mode(), _without_warnings():
        try:
            found = product(weight, torch.ones(32))(rows, torch.float32)
        except (RuntimeError, AttributeError):
            return False
    return bool((found == 64 * 127 * largest).all())


def _faster(linear: nn.Linear, running: Collection[type[nn.Module]]) -> nn.Module:
    """Give what is faster than a layer and gives the same, of the kinds that run; the layer itself where nothing is."""
    small = linear.weight.dtype == torch.float32 and linear.weight.numel() < _SMALL_WEIGHT
    half = SmallHalfLinear if small else HalfLinear
    if half in running and HalfLinear.fits(linear):
        return half(linear)
    return PackedLinear(linear) if PackedLinear in running and not small else linear


def prepare(model: Qwen3Model, attend: Callable[..., tuple[Tensor, None]], *, quantized: bool) -> None:
    """Replace a model's layers on a CPU; the embedding table and the norms' weights stay as they are.

    Args:
        model: changed in place, left alone where it is elsewhere or where nothing is gained.
        attend: an attention function of transformers.
        quantized: whether to run the layers in int8.

    Raises:
        ValueError: they are to be quantized, but are none of torch's own.
    """
    if model.device.type != "cpu":
        return
    if not is_plain(model):
        if quantized:
            raise ValueError("quantization needs linear layers that are torch's own, without adapters")
        return
    running = [kind for kind in (PackedLinear, HalfLinear, SmallHalfLinear) if _runs(kind, model.dtype)]
    if not (quantized or running):
        return
    # In the last layer, queries are of fewer tokens than keys and values.
    for layer in list(model.layers)[:-1]:
        layer.self_attn = FusedAttention(cast("Qwen3Attention", layer.self_attn), attend)
    quantizer = TokenQuantizer(rounds=not int8_product()[0].rounds) if quantized else None

    def replace(name: str) -> None:
        linear = cast("nn.Linear", model.get_submodule(name))
        model.set_submodule(name, Int8Linear(linear, quantizer) if quantizer else _faster(linear, running))

    # Laying a weight out takes one thread. Names, so that each layer is gone once it is replaced.
    with torch.inference_mode(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(replace, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]))
    for name, module in list(model.named_modules()):
        if isinstance(module, Qwen3RMSNorm):
            model.set_submodule(name, RMSNorm(module.weight, module.variance_epsilon))
        elif isinstance(module, Qwen3MLP) and model.config.hidden_act == "silu":
            model.set_submodule(name, GatedMLP(module))
