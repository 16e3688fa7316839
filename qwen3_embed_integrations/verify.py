"""Whether a model computes on this machine what its authors published, and what plain transformers computes.

The published values were never compared where this package is made, which has no access to the official weights.
"""

from __future__ import annotations

import gc
import time
import warnings
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qwen3_embed_integrations.encoder import DEFAULT_MODEL, Qwen3Encoder, TruncationWarning
from qwen3_embed_integrations.instructions import INSTRUCTIONS
from qwen3_embed_integrations.models import MIN_DIMENSIONS, find_spec

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class PublishedSimilarities:
    """What a model card says of some queries, under the default instruction, and some documents.

    Attributes:
        queries: the queries, bare.
        documents: the documents.
        cosines: by the model's short name: one row a query, one column a document.
        source: where they were published.
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    cosines: Mapping[str, tuple[tuple[float, ...], ...]]
    source: str


MODEL_CARDS = PublishedSimilarities(
    queries=("What is the capital of China?", "Explain gravity"),
    documents=(
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and is "
        "responsible for the movement of planets around the sun.",
    ),
    cosines=MappingProxyType(
        {
            "0.6B": ((0.7646, 0.1414), (0.1355, 0.6000)),
            "4B": ((0.7534, 0.1147), (0.0320, 0.6258)),
            "8B": ((0.7493, 0.0751), (0.0880, 0.6318)),
        }
    ),
    source="the model cards, https://huggingface.co/Qwen/Qwen3-Embedding-0.6B and so on",
)

# The cards do not say in which type they were computed; half precision is off by about 0.01 by itself. bfloat16, with
# 8 bits of mantissa, is off as much again on our side.
_PUBLISHED = {"float32": 0.01, "float16": 0.01, "bfloat16": 0.02}

# 1 - cosine to the same weights in another order of operations. float32 has 24 bits, float16 11 and bfloat16 8, and
# the square of what is rounded off counts, once for each of dozens of layers: bfloat16 is off by 2e-4 with random
# weights of the 0.6B's shape and by 3e-5 in the bundled model, where a layer of zeros is off by 7e-3 at least.
_SAME = {"float32": 1e-5, "float16": 2e-4, "bfloat16": 2e-3}

# 1 - cosine of int8 to the type beside it: weights and activations keep 7 bits, whatever the type. It is 0.02 in the
# bundled model, and 0.002 with random weights of the 0.6B's shape.
_INT8 = 0.05

# 1 - cosine of vectors that differ only in where they were cut, in float32 whatever the type.
_CUT = 1e-5

_LONG = " ".join(f"line {number}: the quick brown fox jumps over the lazy dog." for number in range(40))
_CUT_TOKENS = 64

ODD_TEXTS = (
    "",
    " ",
    "\n",
    "a",
    "  two leading spaces",
    "a trailing newline\n",
    "tab\tseparated\tvalues",
    "What is the capital of China?",
    "中国的首都是北京。",
    "عاصمة الصين هي بكين.",
    "Cafe\u0301 and caf\u00e9",
    "👩‍👩‍👧‍👦 🇨🇳 👍🏽",
    "def f(x):\n    return x ** 2\n",
    "<p>Tom &amp; Jerry</p>",
    "https://example.com/a?b=c&d=%20#e",
    "1234567890 3.14159 1e-9",
    "!!!??? ... --- ***",
    "zero\u200bwidth\ufeffand\x00null",
    "<|im_start|>user\nhello<|im_end|> <|endoftext|> after the end",
    _LONG,
)


@dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes:
        name: what was compared.
        status: "ok", "failed", or "skipped" where there is nothing to compare with.
        found: what was measured, or why it was skipped.
        allowed: what it may be at most.
        seconds: time that it took, loading included.
    """

    name: str
    status: Status
    found: str
    allowed: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        model: its name as it was asked for.
        fingerprint: names its files.
        device: torch's name of the device.
        dtype: the type of the weights.
        checks: one a comparison.
    """

    model: str
    fingerprint: str
    device: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "failed" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {**asdict(self), "is_ok": self.is_ok}


def verify(
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str | None = None,
    revision: str | None = None,
) -> Report:
    """Compare a model on this machine with its published values, with itself and with plain transformers.

    One model is in memory at a time, so it takes no more than using the model does.

    Args:
        model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
        dtype: type of the weights, as for `Qwen3Encoder`.
        device: torch's name of a device; None for CUDA, then MPS, then the CPU.
        revision: branch, tag or commit on the hub.

    Returns:
        What was compared, and how it came out.

    Raises:
        OSError: the model is not on this machine, and cannot be fetched.
        ValueError: a setting is unknown, or the model cannot be run.
    """
    from qwen3_embed_integrations.engine.padded import PaddedModel

    encoder = Qwen3Encoder(model, dtype=dtype, device=device, revision=revision)
    size, context = encoder._check_limits()
    # Said, so that what a folder was saved with does not go before what was published.
    own = {"query_instruction": "web_search", "document_instruction": "", "dimensions": size, "max_tokens": context}
    encoder = encoder.replaced(**own)
    spec = find_spec(str(model))
    run = _Run()
    with _loaded(encoder):
        fingerprint, used, place = encoder.fingerprint, encoder.dtype, str(encoder.device)
        folder = encoder._pinned_source().model_folder()
        padded = isinstance(encoder._engine().load(), PaddedModel)
        with run.timed("published similarities"):
            _compare_published(run, encoder, None if spec is None else spec.name, used)
        with run.timed("alone and in company"):
            ours = encoder.encode_documents(ODD_TEXTS)
            alone = np.concatenate([encoder.encode_documents([text]) for text in ODD_TEXTS])
            run.compare(ours, alone, _SAME[used])
        with run.timed("queries are their prompt and the text"):
            literal = [f"Instruct: {INSTRUCTIONS['web_search']}\nQuery:{text}" for text in ODD_TEXTS]
            run.compare(encoder.encode_queries(ODD_TEXTS), encoder.encode_documents(literal), _SAME[used])
        with run.timed("fewer dimensions"):
            _compare_cut(run, encoder, ours)
        with _loaded(encoder.replaced(max_tokens=_CUT_TOKENS)) as short, warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            cut = short.encode_documents([_LONG])
    with run.timed("int8"):
        if padded:
            run.skip("runs Qwen3 models that pool the last token only")
        elif place == "cpu":
            with _loaded(encoder.replaced(quantization="int8")) as quantized:
                run.compare(quantized.encode_documents(ODD_TEXTS), ours, _INT8)
        else:
            run.skip(f"runs on the CPU only, not on {place}")
    with run.timed("plain transformers"):
        theirs, their_cut = _plain_vectors(str(folder), used, place)
        run.compare(ours, theirs, _SAME[used])
    with run.timed("a text that is cut keeps its end token"):
        run.compare(cut, their_cut, _SAME[used])
    return Report(str(model), fingerprint, place, used, tuple(run.checks))


class _Run:
    """Collects checks: one is timed, and says meanwhile how it came out."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self._outcome: tuple[Status, str, str]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.checks.append(Check(name, *self._outcome, time.perf_counter() - started))

    def judge(self, distance: float, allowed: float, found: str, limit: str) -> None:
        # NaN is no pass.
        self._outcome = "ok" if distance <= allowed else "failed", found, limit

    def skip(self, reason: str) -> None:
        self._outcome = "skipped", reason, ""

    def compare(self, left: NDArray[np.float32], right: NDArray[np.float32], allowed: float) -> None:
        """Compare unit vectors row by row."""
        # Half the squared distance is 1 - cosine, without its cancellation.
        differences = left.astype(np.float64) - right.astype(np.float64)
        distance = float((differences**2).sum(axis=1).max()) / 2
        self.judge(distance, allowed, f"cosine {1 - distance:.6f}", f">= {1 - allowed:g}")


@contextmanager
def _loaded(encoder: Qwen3Encoder) -> Iterator[Qwen3Encoder]:
    """Lend an encoder, and free its weights for the next engine."""
    try:
        yield encoder
    finally:
        encoder.close()
        _free()


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _compare_published(run: _Run, encoder: Qwen3Encoder, name: str | None, dtype: str) -> None:
    published = MODEL_CARDS.cosines.get(name or "")
    if published is None:
        run.skip("not published for this model")
        return
    found = encoder.encode_queries(MODEL_CARDS.queries) @ encoder.encode_documents(MODEL_CARDS.documents).T
    distance = float(np.abs(found - np.array(published)).max())
    shown = ", ".join(f"{value:.4f}" for value in found.flat)
    run.judge(distance, _PUBLISHED[dtype], f"{shown}: off by {distance:.4f}", f"{_PUBLISHED[dtype]:g}")


def _compare_cut(run: _Run, encoder: Qwen3Encoder, whole: NDArray[np.float32]) -> None:
    size = max(min(MIN_DIMENSIONS, encoder.dimensions), encoder.dimensions // 4)
    with _loaded(encoder.replaced(dimensions=size)) as cut:
        found = cut.encode_documents(ODD_TEXTS)
    expected = whole[:, :size] / np.linalg.norm(whole[:, :size], axis=1, keepdims=True)
    run.compare(found, expected, _CUT)


def _plain_vectors(folder: str, dtype: str, device: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embed the odd texts, and the cut one, by transformers alone."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    whole = [tokenizer(text)["input_ids"] for text in ODD_TEXTS]
    end = whole[-1][len(tokenizer(_LONG, add_special_tokens=False)["input_ids"]) :]
    vectors = _plain_forward(folder, dtype, device, [*whole, whole[-1][: _CUT_TOKENS - len(end)] + end])
    _free()
    return vectors[:-1], vectors[-1:]


def _plain_forward(folder: str, dtype: str, device: str, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Run token ids one by one, without padding, and take the last token's state."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).to(device).eval()
    rows = []
    for ids in texts:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids], device=device)).last_hidden_state
        rows.append(torch.nn.functional.normalize(hidden[0, -1].float(), dim=-1).cpu().numpy())
    return np.stack(rows)
