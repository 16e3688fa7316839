"""Linear layers in 8-bit integers: weights scaled per channel, activations per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import Qwen3Model


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
            int8 tensor, shape (tokens, width), and its scales in float32, shape (tokens, 1).
        """
        if self._output is None or activations is not self._input:
            rows = activations.reshape(-1, activations.shape[-1])
            scales = rows.abs().amax(dim=1, keepdim=True).float().clamp_min_(1e-10).div_(127)
            self._input, self._output = activations, ((rows / scales).round_().to(torch.int8), scales)
        return self._output


class Int8Linear(nn.Module):
    """A linear layer without bias, in int8.

    Args:
        linear: the layer to replace.
        quantizer: shared by the layers of a model.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, quantizer: TokenQuantizer) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(1e-10) / 127
        self.register_buffer("weight", (weight / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.quantizer = quantizer

    def forward(self, activations: Tensor) -> Tensor:
        """Multiply.

        Args:
            activations: shape (..., in features).

        Returns:
            Shape (..., out features), in the type of the activations.
        """
        rows, row_scales = self.quantizer(activations)
        # In place on float32: multiplying the int32 sums by floats directly takes ten times as long.
        product = torch._int_mm(rows, self.weight.t()).float().mul_(row_scales).mul_(self.scales)
        return product.to(activations.dtype).view(*activations.shape[:-1], -1)


def quantize(model: Qwen3Model) -> None:
    """Replace the linear layers of a model; the embedding table and the norms stay as they are.

    Args:
        model: changed in place.
    """
    quantizer = TokenQuantizer()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Int8Linear(module, quantizer))
