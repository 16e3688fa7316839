"""Attention of a whole packed sequence in one call, by torch's variable-length kernel on CUDA."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn

    _PARAMETERS = set(inspect.signature(varlen_attn).parameters)
except ImportError:
    _PARAMETERS = set()
# torch 2.10 has the kernel, but no causal window that ends with the keys.
_HAS_KERNEL = "window_size" in _PARAMETERS
# torch 2.11 takes fewer heads of keys than of queries as they come, later ones want to be told.
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _PARAMETERS else {}

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from qwen3_embed_integrations.engine.packed import KeysAndValues, Run


def runs_on(query: Tensor) -> bool:
    """Tell whether the kernel takes these queries, shape (..., head dim): CUDA from Ampere on, in half precision."""
    return (
        _HAS_KERNEL
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 256
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@dataclass(frozen=True)
class Layout:
    """Where each text's keys are, computed once for all layers.

    Attributes:
        befores: the different prefixes' keys and values, by layer.
        index: of each text's keys one after the other, in the prefixes' and the sequence's own laid end to end; None
            where there are no prefixes.
        ends: where each text's keys end, beginning with 0, shape (texts + 1,).
        own_ends: the same of its own tokens.
        longest: the most keys of a text.
        own_longest: the most tokens of a text.
    """

    befores: list[KeysAndValues]
    index: Tensor | None
    ends: Tensor
    own_ends: Tensor
    longest: int
    own_longest: int

    @classmethod
    def of(cls, runs: Sequence[Run], device: torch.device) -> Layout:
        """Lay out a packed sequence.

        Args:
            runs: its texts.
            device: where the indexes go.

        Returns:
            The layout.
        """
        befores = list({id(run.before): run.before for run in runs if run.prefix}.values())
        begins, total = {}, 0
        for before in befores:
            begins[id(before)] = total
            total += before[0][0].shape[2]
        own = np.repeat([run.length for run in runs], [run.count for run in runs])
        keys = own + np.repeat([run.prefix for run in runs], [run.count for run in runs])
        parts = []
        for run in runs if befores else ():
            prefix = begins.get(id(run.before), 0) + np.arange(run.prefix)
            tokens = total + np.arange(run.start, run.stop).reshape(run.count, run.length)
            parts.append(np.hstack([np.broadcast_to(prefix, (run.count, run.prefix)), tokens]).ravel())
        return cls(
            befores,
            torch.from_numpy(np.concatenate(parts)).to(device) if befores else None,
            _ends(keys, device),
            _ends(own, device),
            int(keys.max()),
            int(own.max()),
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int, scaling: float) -> Tensor:
        """Attend causally within each text and to its prefix.

        Args:
            query: of all tokens, or of each text's last one, shape (1, heads, tokens or texts, head dim).
            key: of the texts' own tokens, shape (1, KV heads, tokens, head dim).
            value: as key.
            layer: the number of the layer.
            scaling: of the products.

        Returns:
            Shape (tokens or texts, heads, head dim).
        """
        texts = len(self.ends) - 1
        of_last = query.shape[2] == texts
        attended = varlen_attn(
            query[0].transpose(0, 1),
            self._complete(key, layer, 0),
            self._complete(value, layer, 1),
            torch.arange(texts + 1, dtype=torch.int32, device=query.device) if of_last else self.own_ends,
            self.ends,
            1 if of_last else self.own_longest,
            self.longest,
            scale=scaling,
            # Causal from the right: the last query sees all keys.
            window_size=(-1, 0),
            **_GROUPED,
        )
        return cast("Tensor", attended)

    def _complete(self, own: Tensor, layer: int, which: int) -> Tensor:
        """Give keys or values with those of the prefixes before each text's own, shape (keys, KV heads, head dim)."""
        states = own[0].transpose(0, 1)
        if self.index is None:
            return states
        before = [before[layer][which][0].transpose(0, 1) for before in self.befores]
        return torch.cat([*before, states])[self.index]


def _ends(lengths: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.append(0, lengths.cumsum()).astype(np.int32)).to(device)
