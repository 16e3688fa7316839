"""Triton kernels, each one pass over memory where torch's own operations take several; importing it needs Triton.

They compute RMSNorm (https://arxiv.org/abs/1910.07467) with rotary positions (https://arxiv.org/abs/2104.09864), and
SwiGLU's product (https://arxiv.org/abs/2002.05202).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS_AT_ONCE = 8
_COLUMNS_AT_ONCE = 1024


@triton.jit
def _norm_and_rotate(
    states,
    row,
    weight,
    cos,
    sin,
    out,
    epsilon,
    heads,
    dim: tl.constexpr,
    block: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * block + tl.arange(0, block)
    column = tl.arange(0, dim // 2)
    inside = (head < heads)[:, None]
    at = head[:, None] * dim + column[None, :]
    left = tl.load(states + token * row + at, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(states + token * row + at + dim // 2, mask=inside, other=0.0).to(tl.float32)
    square = (tl.sum(left * left, axis=1) + tl.sum(right * right, axis=1)) / dim
    scale = (1 / tl.sqrt(square + epsilon))[:, None]
    left = left * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    right = right * scale * tl.load(weight + at + dim // 2, mask=inside, other=0.0).to(tl.float32)
    # The second half of the angles is the first again.
    c = tl.load(cos + token * dim + column).to(tl.float32)[None, :]
    s = tl.load(sin + token * dim + column).to(tl.float32)[None, :]
    to = out + token * heads * dim + at
    tl.store(to, (left * c - right * s).to(out.dtype.element_ty), mask=inside)
    tl.store(to + dim // 2, (right * c + left * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _silu_times(joined, out, width, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    gate = tl.load(joined + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(joined + (row * 2 + 1) * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def norm_and_rotate(states: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, epsilon: float) -> Tensor:
    """Normalise each head by its root mean square, then rotate it by its token's position.

    Args:
        states: shape (tokens, at least heads * dim), of which the first columns are read.
        weight: of the norm, shape (heads, dim), contiguous; dim is a power of two.
        cos: of the positions' angles, shape (tokens, dim), contiguous; the second half equals the first.
        sin: as cos.
        epsilon: added to the mean square.

    Returns:
        Shape (tokens, heads, dim), in the type of the states.
    """
    tokens, (heads, dim) = len(states), weight.shape
    out = torch.empty(tokens, heads, dim, dtype=states.dtype, device=states.device)
    grid = (tokens, triton.cdiv(heads, _HEADS_AT_ONCE))
    _norm_and_rotate[grid](
        states, states.stride(0), weight, cos, sin, out, epsilon, heads, dim=dim, block=_HEADS_AT_ONCE
    )
    return out


def silu_times(joined: Tensor) -> Tensor:
    """Multiply SiLU of the first half of the columns by the second half.

    Args:
        joined: shape (tokens, 2 * width), contiguous.

    Returns:
        Shape (tokens, width).
    """
    tokens, width = len(joined), joined.shape[1] // 2
    out = torch.empty(tokens, width, dtype=joined.dtype, device=joined.device)
    _silu_times[tokens, triton.cdiv(width, _COLUMNS_AT_ONCE)](joined, out, width, block=_COLUMNS_AT_ONCE)
    return out
