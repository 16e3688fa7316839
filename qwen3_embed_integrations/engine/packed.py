"""Texts laid end to end through a loaded Qwen3Model: no padding, no mask, only what a last-token embedding needs."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from qwen3_embed_integrations.engine import cpu, cuda, varlen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from qwen3_embed_integrations.engine.scheduler import Item

ATTENTION = "qwen3_embed_packed"

# Instructions whose keys and values are kept; those of the 8B take 144 KiB a token.
_PREFIXES = 32

# Lengths between which attention on a CPU runs as matrix products, and the queries in one product.
_BLOCKED_TOKENS = (48, 2048)
_BLOCK = 128

KeysAndValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Run:
    """Texts of one length beside each other, after as many tokens of the prefix: they attend in one call.

    Attributes:
        start: position of the first text's first token in the sequence.
        count: number of texts.
        length: tokens of each, without the prefix.
        prefix: tokens of the prefix that stand before each.
        before: the prefix's keys and values by layer, each of shape (1, KV heads, tokens, head dim).
    """

    start: int
    count: int
    length: int
    prefix: int = 0
    before: KeysAndValues = field(default_factory=list)

    @property
    def stop(self) -> int:
        """The position after the last text's last token."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class Packing:
    """What attention has to know of a packed sequence.

    Attributes:
        runs: which tokens belong together, in the order of the sequence.
        captured: receives the keys and values of each layer where it is a list.
    """

    runs: list[Run]
    captured: KeysAndValues | None = None
    _masks: dict[tuple[int, int, torch.device], Tensor] = field(default_factory=dict)
    _layouts: dict[torch.device, varlen.Layout] = field(default_factory=dict)

    def last(self, device: torch.device) -> Tensor:
        """Give the position of each text's last token, shape (texts,)."""
        ends = [position for run in self.runs for position in range(run.start + run.length - 1, run.stop, run.length)]
        return torch.tensor(ends, device=device)

    def layout(self, device: torch.device) -> varlen.Layout:
        """Give where the keys of each text are, for the kernel that attends in one call."""
        if device not in self._layouts:
            self._layouts[device] = varlen.Layout.of(self.runs, device)
        return self._layouts[device]

    def mask(self, run: Run, like: Tensor) -> Tensor | None:
        """Give what to add to a run's products, shape (length, prefix + length); None where causality says it all."""
        if not run.prefix or run.length == 1:
            return None
        key = (run.length, run.prefix, like.device)
        if key not in self._masks:
            hidden = like.new_full((run.length, run.prefix + run.length), -torch.inf)
            self._masks[key] = hidden.triu(run.prefix + 1)
        return self._masks[key]


class PackedModel:
    """Runs a loaded Qwen3Model on packed texts, and keeps the keys and values of the instructions before them.

    Args:
        model: sentence-transformers' model, for which `fits` is true.
        quantized: whether to replace its linear layers by int8 ones.
    """

    def __init__(self, model: SentenceTransformer, *, quantized: bool = False) -> None:
        self._model = cast("Qwen3Model", model[0].auto_model)
        self._model.set_attn_implementation(ATTENTION)
        # A model that is split has hooks on its layers, which bring in weights and inputs: it runs as it is.
        self._split = hasattr(self._model, "hf_device_map")
        if not self._split:
            cpu.prepare(self._model, packed_attention, quantized=quantized)
            cuda.prepare(self._model, packed_attention)
        self._prefixes: OrderedDict[bytes, KeysAndValues] = OrderedDict()
        self._stopped = False

    @staticmethod
    def fits(model: SentenceTransformer) -> bool:
        """Tell whether the model is a Qwen3Model pooled on its last token, with full attention in every layer."""
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

        transformer = getattr(model[0], "auto_model", None)
        return (
            isinstance(transformer, Qwen3Model)
            and set(transformer.config.layer_types or []) == {"full_attention"}
            and len(model) > 1
            and isinstance(model[1], Pooling)
            and model[1].pooling_mode == "lasttoken"
            and all(isinstance(module, Normalize) for module in list(model)[2:])
        )

    def embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Compute the last token's hidden state of each text.

        Args:
            items: the texts.

        Returns:
            float32 array, shape (n, hidden size), in the order of the items.
        """
        self._stopped = False
        prefixes = {item.prompt.tobytes(): self._prefix(item.prompt) for item in items}
        keys = [
            (item.prompt.tobytes(), shared := shared_prefix(item.prompt, item.ids), len(item.ids) - shared)
            for item in items
        ]
        order = sorted(range(len(items)), key=keys.__getitem__)
        runs: list[Run] = []
        start = 0
        for (prompt, shared, length), same in groupby(keys[position] for position in order):
            runs.append(Run(start, len(list(same)), length, shared, prefixes[prompt]))
            start = runs[-1].stop
        sequence = np.concatenate([items[position].ids[keys[position][1] :] for position in order])
        positions = np.concatenate([np.arange(keys[position][1], len(items[position].ids)) for position in order])
        hidden = self._forward(sequence, positions, Packing(runs))
        result = np.empty(hidden.shape, dtype=np.float32)
        result[order] = hidden.float().cpu().numpy()
        return result

    def stop(self) -> None:
        """Make what another thread computes end after its layer: nobody waits for it any more."""
        self._stopped = True

    def _unless_stopped(self, layers: nn.ModuleList) -> Iterator[nn.Module]:
        for layer in layers:
            if self._stopped:
                raise CancelledError
            yield layer

    def _prefix(self, prompt_ids: NDArray[np.int64]) -> KeysAndValues:
        if not len(prompt_ids):
            return []
        key = prompt_ids.tobytes()
        if key not in self._prefixes:
            captured: KeysAndValues = []
            packing = Packing([Run(0, 1, len(prompt_ids))], captured=captured)
            self._forward(prompt_ids, np.arange(len(prompt_ids)), packing)
            self._prefixes[key] = captured
            if len(self._prefixes) > _PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _forward(self, sequence: NDArray[np.int64], positions: NDArray[np.int64], packing: Packing) -> Tensor:
        """Give the last hidden state of each text's last token, shape (n, hidden size)."""
        model = self._model
        # Of a table that is brought in when it is needed, the place is not known.
        device = torch.device("cpu") if model.embed_tokens.weight.is_meta else model.embed_tokens.weight.device
        with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            hidden = model.embed_tokens(torch.from_numpy(sequence).to(device)[None])
            rotary = model.rotary_emb(hidden, torch.from_numpy(positions).to(device)[None])
            if self._split:
                for layer in self._unless_stopped(model.layers):
                    hidden = layer(hidden, position_embeddings=rotary, attention_mask=None, packing=packing)
                hidden = hidden[:, packing.last(hidden.device)]
            else:
                for layer in self._unless_stopped(model.layers[:-1]):
                    if isinstance(layer, cuda.FusedLayer):
                        hidden = layer(hidden, rotary, packing=packing)
                    else:
                        hidden = _layer(layer, hidden, rotary, packing)
                hidden = _last_layer(model.layers[-1], hidden, rotary, packing)
            last: Tensor = model.norm(hidden)
        return last[0]


def shared_prefix(prompt_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> int:
    """Count the token ids that a text begins with as its prompt does; the last one is never counted.

    The tokens decide, not the characters: the tokenizer may join the prompt's end with the text's beginning.

    Args:
        prompt_ids: the prompt's token ids, without end token, shape (tokens,).
        ids: the text's token ids, prompt and end token included, shape (tokens,).

    Returns:
        How many tokens are the same.
    """
    if not len(prompt_ids):
        return 0
    length = min(len(prompt_ids), len(ids) - 1)
    different = np.flatnonzero(prompt_ids[:length] != ids[:length])
    return int(different[0]) if len(different) else length


def _with_prefix(keys: Tensor, layer: int, which: int, run: Run) -> Tensor:
    """Give a run's keys (which=0) or values (1), those of the prefix before them: (count, KV heads, all, dim)."""
    own = _by_text(keys, run)
    if not run.prefix:
        return own
    before = run.before[layer][which][:, :, : run.prefix]
    return torch.cat([before.expand(run.count, -1, -1, -1), own], dim=2)


def _by_text(states: Tensor, run: Run) -> Tensor:
    """Cut a run out of (1, heads, tokens, dim) and give each text a row: (count, heads, length, dim)."""
    heads, dim = states.shape[1], states.shape[3]
    return states[0, :, run.start : run.stop].view(heads, run.count, run.length, dim).transpose(0, 1)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packing: Packing,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text of a packed sequence and to its prefix: an attention function of transformers.

    Args:
        module: the attention module that asks, of which the layer's number is read.
        query: shape (1, heads, tokens, head dim).
        key: shape (1, KV heads, tokens, head dim).
        value: as key.
        attention_mask: none is needed.
        scaling: of the products.
        packing: which tokens belong together.

    Returns:
        Attention's output, shape (1, tokens, heads, head dim), and no weights.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # torch types any attribute as tensor or module
    if packing.captured is not None:
        # Copies, since these are views into the queries' memory too.
        packing.captured.append((key.contiguous(), value.contiguous()))
    if varlen.runs_on(query):
        return packing.layout(query.device).attend(query, key, value, layer, scaling)[None], None
    outputs = []
    for run in packing.runs:
        asked, keys, values = _by_text(query, run), _with_prefix(key, layer, 0, run), _with_prefix(value, layer, 1, run)
        if _in_blocks(query, run):
            attended = causal_attention(asked, keys, values, scaling)
        else:
            causal = not run.prefix and run.length > 1
            attended = _attend(asked, keys, values, scaling, packing.mask(run, query), causal=causal).transpose(1, 2)
        outputs.append(attended.flatten(0, 1))
    # Of a long text alone there is no second copy.
    return (torch.cat(outputs) if len(outputs) > 1 else outputs[0])[None], None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Attend in torch's kernel: shapes (count, heads or KV heads, length, head dim), the result as the query."""
    if query.is_cuda:
        # With fewer heads of keys there, float32 or a mask leaves only the kernel that holds all scores at once.
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=not query.is_cuda
    )


def _in_blocks(query: Tensor, run: Run) -> bool:
    """Tell whether a run's attention is faster as matrix products than in torch's kernel, measured at the 0.6B."""
    blocks = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not run.prefix
    return blocks and _BLOCKED_TOKENS[0] <= run.length <= _BLOCKED_TOKENS[1]


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attend causally with matrix products over blocks of queries, each with the keys up to its end.

    Args:
        query: shape (count, heads, length, head dim).
        key: shape (count, KV heads, length, head dim).
        value: as key.
        scaling: of the products.

    Returns:
        Shape (count, length, heads, head dim).
    """
    count, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    output = query.new_empty(count, length, heads, dim)
    grouped = output.view(count, length, kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    # Scores in float32, as torch's kernel keeps them: in bfloat16 a large one would be off by percents of its weight.
    exact = (key.float() * scaling).transpose(2, 3)
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        rows = query[:, :, start:stop].float().reshape(count * kv_heads, group * (stop - start), dim)
        scores = (rows @ exact[..., :stop].flatten(0, 1)).view(-1, group, stop - start, stop)
        scores[..., start:].add_(scores.new_full((stop - start, stop - start), -torch.inf).triu_(1))
        weights = scores.softmax(-1).to(query.dtype).view(-1, group * (stop - start), stop)
        attended = weights @ value[:, :, :stop].flatten(0, 1)
        grouped[:, :, :, start:stop] = attended.view(count, kv_heads, group, stop - start, dim)
    return output


AttentionInterface.register(ATTENTION, packed_attention)


def _layer(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
    """Run a Qwen3DecoderLayer as its own `forward` does, which checks more and adds into new memory.

    Args:
        layer: any but the last, whose output is of all tokens.
        hidden: its input, shape (1, tokens, hidden size).
        rotary: cosines and sines of the positions, each of shape (1, tokens, head dim).
        packing: which tokens belong together.

    Returns:
        Its output, shape (1, tokens, hidden size).
    """
    attended: Tensor = layer.self_attn(
        hidden_states=layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None, packing=packing
    )[0]
    hidden = attended.add_(hidden)
    for at in cpu.row_slices(hidden):
        rows = hidden[:, at]
        rows.add_(layer.mlp(layer.post_attention_layernorm(rows)))
    return hidden


def _last_layer(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], packing: Packing) -> Tensor:
    """Run the last layer for each text's last token only, which all tokens' keys and values still serve.

    Args:
        layer: a Qwen3DecoderLayer.
        hidden: its input, shape (1, tokens, hidden size).
        rotary: cosines and sines of the positions, each of shape (1, tokens, head dim).
        packing: which tokens belong together.

    Returns:
        Its output for the last tokens, shape (1, n, hidden size).
    """
    attention = layer.self_attn
    cos, sin = (part[:, None] for part in rotary)
    last = packing.last(hidden.device)

    def heads(states: Tensor) -> Tensor:
        return states.view(*states.shape[:-1], -1, attention.head_dim)

    def rotated(states: Tensor, at: Any = slice(None)) -> Tensor:
        half = cast("Tensor", rotate_half(states))  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        return states * cos[:, :, at] + half * sin[:, :, at]

    normed = layer.input_layernorm(hidden)
    key = rotated(attention.k_norm(heads(attention.k_proj(normed))).transpose(1, 2))
    value = heads(attention.v_proj(normed)).transpose(1, 2)
    if packing.captured is not None:
        packing.captured.append((key, value))
    query = rotated(attention.q_norm(heads(attention.q_proj(normed[:, last]))).transpose(1, 2), last)
    hidden = hidden[:, last] + attention.o_proj(_attend_last(attention, query, key, value, packing)[None])
    result: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return result


def _attend_last(attention: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
    """Attend from each text's last token: queries of shape (1, heads, texts, head dim), result (texts, width)."""
    if varlen.runs_on(query):
        layout = packing.layout(query.device)
        return layout.attend(query, key, value, attention.layer_idx, attention.scaling).flatten(1)
    outputs, first = [], 0
    for run in packing.runs:
        asked = query[0, :, first : first + run.count].transpose(0, 1)[:, :, None]
        keys, values = (_with_prefix(part, attention.layer_idx, which, run) for which, part in enumerate((key, value)))
        attended = _attend(asked, keys, values, attention.scaling)
        outputs.append(attended.flatten(1))
        first += run.count
    return torch.cat(outputs)
