"""Texts to vectors: the contract that the adapters depend on, and the encoder that runs on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from qwen3_embed_integrations._renamed import explains_names
from qwen3_embed_integrations.engine.model_files import SENTENCE_TRANSFORMERS
from qwen3_embed_integrations.engine.source import ModelSource, locate
from qwen3_embed_integrations.instructions import (
    OWN_PROMPTS,
    Prompts,
    is_written_out,
    query_prompt,
    saved_prompts,
    task_of,
)
from qwen3_embed_integrations.long_text import LEAST_TOKENS, MAX_TOKENS, OVERLAP_TOKENS, Span, split
from qwen3_embed_integrations.matryoshka import as_integer, truncate
from qwen3_embed_integrations.messages import named
from qwen3_embed_integrations.models import MIN_DIMENSIONS, find_spec
from qwen3_embed_integrations.usage import Usage, UsageCounter, count
from qwen3_embed_integrations.waiting import Caller

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from qwen3_embed_integrations.engine.engine import Embedded, Engine
    from qwen3_embed_integrations.engine.tokenization import Tokenization

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
DTYPES = ("auto", "float32", "bfloat16", "float16")
LONG_TEXT = ("truncate", "error", "chunk")
QUANTIZATIONS = (None, "int8")

LongText = Literal["truncate", "error", "chunk"]
Quantization = Literal["int8"]


# Threads of async callers: they wait for the model most of the time.
_THREADS = ThreadPoolExecutor(max_workers=64, thread_name_prefix="qwen3-embed")


class TruncationWarning(UserWarning):
    """A text was longer than `max_tokens` and only its beginning was embedded."""


class Encoder(Protocol):
    """What the adapters need of an encoder, local or remote."""

    @property
    def dimensions(self) -> int:
        """Components of the vectors that it returns."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that it reads at most, the end token included."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the vector space of the documents: model, revision, dimensions, document instruction."""
        ...

    def encode_queries(
        self, texts: Iterable[str], *, instruction: str | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed queries: float32 array, shape (n, dimensions), unit length."""
        ...

    def encode_documents(
        self, texts: Iterable[str], *, instruction: str | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed documents: float32 array, shape (n, dimensions), unit length."""
        ...

    async def aencode_queries(self, texts: Iterable[str], *, instruction: str | None = None) -> NDArray[np.float32]:
        """Embed queries without blocking the event loop."""
        ...

    async def aencode_documents(self, texts: Iterable[str], *, instruction: str | None = None) -> NDArray[np.float32]:
        """Embed documents without blocking the event loop."""
        ...

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Count each text's tokens, the end token included."""
        ...


async def _in_thread(
    encode: Callable[..., NDArray[np.float32]], texts: Iterable[str], instruction: str | None
) -> NDArray[np.float32]:
    loop = asyncio.get_running_loop()
    caller = Caller(loop)
    try:
        # Not asyncio's own executor, whose few threads would keep waiting callers out of the next group.
        call = partial(caller.bind(encode), texts, instruction=instruction)
        return await loop.run_in_executor(_THREADS, call)
    finally:
        # Cancelled, or the loop is gone: the thread would go on.
        caller.leave()


class BaseEncoder(ABC):
    """Derives the methods of `Encoder` that embed from one: `_encode`.

    Args:
        query_instruction: a name in `INSTRUCTIONS`, a task sentence, or "" for none; None for `_default_prompts`.
        document_instruction: the same for documents.
    """

    def __init__(self, query_instruction: str | None, document_instruction: str | None) -> None:
        self._given_query_prompt = None if query_instruction is None else query_prompt(query_instruction)
        self._given_document_prompt = None if document_instruction is None else query_prompt(document_instruction)
        self._has_warned_of_prompts = False

    def _default_prompts(self) -> Prompts:
        """Return what stands before texts where no instruction is given."""
        return OWN_PROMPTS

    @property
    def _query_prompt(self) -> str:
        given = self._given_query_prompt
        return self._default_prompts().query if given is None else given

    @property
    def _document_prompt(self) -> str:
        given = self._given_document_prompt
        return self._default_prompts().document if given is None else given

    @abstractmethod
    def _encode(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        """Embed texts that were checked already.

        Args:
            texts: the texts, without prompt.
            prompt: what stands before each of them, or "".
            show_progress: whether to draw a progress bar.

        Returns:
            float32 array, shape (n, dimensions), unit length, in the order of the texts.
        """

    def encode_queries(
        self, texts: Iterable[str], *, instruction: str | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        r"""Embed queries, each written as `Instruct: {task}\nQuery:{text}`.

        A query that is written like that already is embedded as it stands, and a warning says so once.

        Args:
            texts: the queries.
            instruction: a name in `INSTRUCTIONS`, a task sentence, a whole prompt, or "" for none, for this call; None
                for the encoder's own.
            show_progress: whether to draw a progress bar.

        Returns:
            float32 array, shape (n, dimensions), unit length, in the order of the texts.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
            ValueError: the instruction is unknown, or leaves no room for a text in `max_tokens`.
        """
        prompt = self._query_prompt if instruction is None else query_prompt(instruction)
        checked = as_texts(texts)
        self._warn_of_written_out(checked, prompt)
        return self._encode(checked, prompt, show_progress)

    def encode_documents(
        self, texts: Iterable[str], *, instruction: str | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed documents: bare, unless an instruction is given here or to the encoder.

        Args:
            texts: the documents.
            instruction: as for `encode_queries`. It is written in the template of the queries.
            show_progress: whether to draw a progress bar.

        Returns:
            float32 array, shape (n, dimensions), unit length, in the order of the texts.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
            ValueError: the instruction is unknown, or leaves no room for a text in `max_tokens`.
        """
        prompt = self._document_prompt if instruction is None else query_prompt(instruction)
        checked = as_texts(texts)
        self._warn_of_written_out(checked, prompt)
        return self._encode_documents(checked, prompt, show_progress)

    def _encode_documents(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        """Embed documents, where that differs from queries: as `_encode`."""
        return self._encode(texts, prompt, show_progress)

    def _warn_of_written_out(self, texts: Sequence[str], prompt: str) -> None:
        """Warn once of texts that have an instruction already and get no second one."""
        if not prompt or self._has_warned_of_prompts:
            return
        first = next((index for index, text in enumerate(texts) if is_written_out(text)), None)
        if first is not None:
            self._has_warned_of_prompts = True
            warnings.warn(
                f"{named(first, len(texts))} begins with 'Instruct:' and has a line 'Query:', so it is embedded as it "
                "stands, without the encoder's instruction, as are others like it: give bare texts",
                UserWarning,
                stacklevel=3,
            )

    async def aencode_queries(self, texts: Iterable[str], *, instruction: str | None = None) -> NDArray[np.float32]:
        """Embed queries in a thread, without blocking the event loop.

        Where it is cancelled, what was not begun yet is dropped: the thread ends after the group of texts, or the
        request, that is under way. `usage` leaves such a call out.

        Args:
            texts: the queries.
            instruction: as for `encode_queries`.

        Returns:
            What `encode_queries` returns.
        """
        return await _in_thread(self.encode_queries, texts, instruction)

    async def aencode_documents(self, texts: Iterable[str], *, instruction: str | None = None) -> NDArray[np.float32]:
        """Embed documents in a thread, without blocking the event loop.

        Where it is cancelled, it ends as `aencode_queries` does.

        Args:
            texts: the documents.
            instruction: as for `encode_documents`.

        Returns:
            What `encode_documents` returns.
        """
        return await _in_thread(self.encode_documents, texts, instruction)


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of a `Qwen3Encoder`, which documents them; all but the token, which is kept out of sight."""

    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    max_tokens: int | None = None
    long_text: LongText = "truncate"
    device: str | list[str] | None = None
    device_map: str | dict[str, Any] | None = None
    dtype: str = "auto"
    quantization: Quantization | None = None
    batch_tokens: int | None = None
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        if self.long_text not in LONG_TEXT:
            raise ValueError(f"long_text must be one of {', '.join(map(repr, LONG_TEXT))}, got {self.long_text!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(repr, DTYPES))}, got {self.dtype!r}")
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be None or 'int8', got {self.quantization!r}")
        if self.device_map is not None and (self.device is not None or self.quantization is not None):
            raise ValueError("device_map places the model by itself: leave device and quantization out")
        if self.device == []:
            raise ValueError("device must name at least one device, got []")
        if not isinstance(self.local_files_only, bool):
            raise TypeError(f"local_files_only must be True or False, got {self.local_files_only!r}")
        for name in ("dimensions", "max_tokens", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as `Qwen3Encoder` takes them: plain values that any format can hold."""
        return asdict(self)


class ConfiguredEncoder(BaseEncoder):
    """An encoder that its settings tell all of: it pickles as them, and a copy is the encoder itself.

    Two of one class are equal if their settings are, their token or key included.
    """

    settings: Any

    def __init__(self, query_instruction: str | None, document_instruction: str | None) -> None:
        super().__init__(query_instruction, document_instruction)
        self._counter = UsageCounter()

    @property
    def usage(self) -> Usage:
        """What this encoder was asked for so far, and what it took; one made by `replaced` or a pickle begins anew.

        `record_usage` tells it of some calls alone.
        """
        return self._counter.usage

    @abstractmethod
    def _needed_tokenization(self) -> Tokenization:
        """Give the model's tokenizer.

        Returns:
            It, loaded.

        Raises:
            FileNotFoundError: it is not on this machine, and cannot be fetched.
        """

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Count each text's tokens, the end token included; this needs the tokenizer only, not the weights.

        Args:
            texts: bare texts; a prompt's tokens are not counted.

        Returns:
            One number a text.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
            FileNotFoundError: the tokenizer is not on this machine, and cannot be fetched.
        """
        return self._needed_tokenization().count(as_texts(texts))

    def tokenize(self, text: str) -> list[int]:
        """Tokenize a text for those who count by themselves: `TokenCountingHandler(tokenizer=encoder.tokenize)`.

        Args:
            text: a bare text.

        Returns:
            Its token ids, the end token included.

        Raises:
            TypeError: text is not a string.
            FileNotFoundError: the tokenizer is not on this machine, and cannot be fetched.
        """
        [ids] = self._needed_tokenization().encode(as_texts([text]))
        return [int(token) for token in ids]

    def refusals(self, texts: Sequence[str]) -> dict[int, str]:
        """Find the documents that would be refused; nothing is embedded, and no server is asked.

        Args:
            texts: the documents, without the document instruction, which is counted.

        Returns:
            Position to reason, which ends a sentence: "has 53 tokens, more than max_tokens=12".

        Raises:
            TypeError: texts is a single string, or an item is not a string.
            ValueError: the document instruction leaves no room for a text in `max_tokens`.
        """
        return self._refusals(as_texts(texts), self._document_prompt)

    @abstractmethod
    def _refusals(self, texts: list[str], prompt: str) -> dict[int, str]:
        """Find the texts that would be refused with a prompt before each: position to reason."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds; a later use takes it up again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def _secret(self) -> object:
        """The token or key, which the settings leave out."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfiguredEncoder) or type(self) is not type(other):
            return NotImplemented
        return bool(self.settings == other.settings and self._secret == other._secret)

    def __hash__(self) -> int:
        return hash((type(self), self.settings.model))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_settings, (type(self), self.settings.to_dict())


def _from_settings(kind: type[ConfiguredEncoder], settings: dict[str, Any]) -> ConfiguredEncoder:
    return kind(**settings)


class Qwen3Encoder(ConfiguredEncoder):
    r"""Embeds texts with a Qwen3-Embedding model on this machine.

    Making one is cheap: the model is loaded by the first call that needs it, once, and shared with every other encoder
    in the process that asks for the same weights on the same device in the same type. Safe to use from many threads.
    Pickles as its settings, without the token; the weights are found or loaded again on the other side.

    Args:
        model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
        dimensions: components of the vectors, 32 to the model's own; None for all of them, or for the `truncate_dim`
            that a folder was saved with. Vectors are cut and brought back to unit length (Matryoshka representation
            learning, https://arxiv.org/abs/2205.13147).
        query_instruction: a name in `INSTRUCTIONS`, a task sentence in English, a whole prompt
            (`Instruct: {task}\nQuery:`), or "" for none; None for the prompt that the model was saved with
            (config_sentence_transformers.json), or for "web_search" where that has none.
        document_instruction: the same for documents; None for the saved prompt, or for bare documents, as the models
            were trained.
        max_tokens: tokens of a text to read at most, prompt and end token included; None for the model's context, or
            for the `max_seq_length` that a folder was saved with.
        long_text: what to do with a longer text: "truncate" reads its beginning, warns once and counts it in
            `truncated_texts`; "error" refuses, before any work; "chunk" cuts a document into overlapping windows of
            `max_tokens`, 20,000 at most, and gives the mean of their vectors, weighted by their tokens. A query is
            truncated then too. The instruction is never what is cut.
        device: torch's name of a device; several for a replica of the model on each, which share the work:
            `["cuda:0", "cuda:1"]`; None for CUDA, then MPS, then the CPU.
        device_map: instead of `device`, for a model that one device cannot hold: "auto", or which module goes where
            (transformers' `device_map`; needs accelerate, and sentence-transformers 6.2 where the model is split).
        dtype: type of the weights: "auto" is bfloat16 where the hardware computes with it and float32 elsewhere;
            "float32", "bfloat16", "float16". Vectors are float32 whatever it is.
        quantization: "int8" runs the linear layers in 8-bit integers, on a CPU: weights scaled per channel,
            activations per token; None for none.
        batch_tokens: tokens to run at once, padding included; None for the device's default.
        revision: branch, tag or commit on the hub.
        cache_folder: where the hub's files are kept.
        local_files_only: never ask the network.
        token: access token of the hub for private models; None for the one that `hf auth login` or `HF_TOKEN` set.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range or unknown.

    Example:
        >>> from qwen3_embed_integrations import Qwen3Encoder
        >>> encoder = Qwen3Encoder("tiny", dimensions=64)
        >>> queries = encoder.encode_queries(["how do I copy a folder?"])
        >>> documents = encoder.encode_documents(["Copy a directory tree.", "Compute a square root."])
        >>> (queries @ documents.T).shape
        (1, 2)
    """

    settings: EncoderSettings

    @explains_names
    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        dimensions: int | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        max_tokens: int | None = None,
        long_text: LongText = "truncate",
        device: str | Sequence[str] | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        dtype: str = "auto",
        quantization: Quantization | None = None,
        batch_tokens: int | None = None,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> None:
        super().__init__(query_instruction, document_instruction)
        location = locate(model)
        cache_folder = None if cache_folder is None else str(Path(cache_folder).expanduser())
        self._source = ModelSource(
            location,
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            token=_checked_token(token),
        )
        if revision is not None and self._source.is_folder:
            raise ValueError(f"revision={revision!r} needs a model on the hub, but {os.fspath(model)!r} is a folder")
        self.settings = EncoderSettings(
            # A relative folder would be another one in another process.
            model=location if self._source.is_folder and model != "tiny" else str(model),
            dimensions=_optional_integer("dimensions", dimensions),
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            max_tokens=_optional_integer("max_tokens", max_tokens),
            long_text=long_text,
            device=_checked_device(device),
            device_map=_checked_device_map(device_map),
            dtype=str(dtype).removeprefix("torch."),
            quantization=quantization,
            batch_tokens=_optional_integer("batch_tokens", batch_tokens),
            revision=revision,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        self._lock = threading.Lock()
        self._pinned: ModelSource | None = None
        self._version: str | None = None
        self._held_engine: Engine | None = None
        self._held_tokenization: Tokenization | None = None
        self._has_warned = False
        self._limits: tuple[int, int] | None = None
        self._saved = (0, 0)
        self._prompts: Prompts | None = None
        if self._source.is_folder or find_spec(location) is not None:
            self._check_limits()

    @property
    def dimensions(self) -> int:
        """Components of the vectors that it returns."""
        return self.settings.dimensions or self._saved_limits()[0]

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that it reads at most, prompt and end token included."""
        return self.settings.max_tokens or self._saved_limits()[1]

    @property
    def query_instruction(self) -> str:
        """The task sentence that queries get, or else their prompt as it is; "" for none."""
        return task_of(self._query_prompt)

    @property
    def document_instruction(self) -> str | None:
        """The task sentence that documents get, or else their prompt as it is; None for none."""
        return task_of(self._document_prompt) or None

    def _default_prompts(self) -> Prompts:
        if self._prompts is None:
            self._prompts = prompts_of(self._pinned or self._source)
        return self._prompts

    @property
    def truncated_texts(self) -> int:
        """How many texts were cut to `max_tokens` so far."""
        return self.usage.truncated_texts

    @property
    def fingerprint(self) -> str:
        """Names all that changes a document's vector, but for rounding: a namespace for caches, a label for indexes.

        Model, revision (the hub's commit, or a hash of a folder's files), dimensions, document instruction and, where
        it is not the model's context, `max_tokens`. Letters, digits, dots, dashes and underscores only. The
        device and the precision are left out: vectors computed with either can be compared.
        """
        source = self._pinned_source()
        if self._version is None:
            self._version = source.version()
        name = "local" if source.is_folder else source.location.replace("/", ".")
        parts = [vector_space(f"{name}-{self._version}", self.dimensions, self._document_prompt)]
        if self.max_tokens != self._check_limits()[1]:
            parts.append(f"max{self.max_tokens}")
        if self.settings.long_text == "chunk":
            parts.append("chunk")
        return ".".join(parts)

    @property
    def query_fingerprint(self) -> str:
        """Names all that changes a query's vector: the fingerprint and the query instruction."""
        return f"{self.fingerprint}.query-{short_hash(self._query_prompt)}"

    @property
    def dtype(self) -> str:
        """The type of the weights that the machine runs, "float32" or "bfloat16" unless float16 was asked for."""
        return self._engine().settings.dtype

    @property
    def device(self) -> str | list[str]:
        """The device that the weights are on, or will be, by torch's name; several where there are replicas."""
        return self.settings.device if isinstance(self.settings.device, list) else self._engine().settings.device

    def _needed_tokenization(self) -> Tokenization:
        return self._tokenization()

    @property
    def _secret(self) -> object:
        return self._source.token

    def replaced(self, **changes: Any) -> Qwen3Encoder:
        """Make an encoder with the same settings and token but for some.

        Args:
            **changes: settings by name.

        Returns:
            A new encoder; it shares the weights unless the changes concern them.
        """
        return type(self)(**{**self.settings.to_dict(), "token": self._source.token, **changes})

    def warm_up(self) -> None:
        """Load the model now, instead of in the first call that needs it."""
        self._tokenization()
        self._engine().load()

    def close(self) -> None:
        """Let go of the model: its memory is free once every encoder that shares it let go. A later use loads again."""
        with self._lock:
            self._held_engine = self._held_tokenization = self._pinned = self._version = None
            self._limits = self._prompts = None

    def split(self, text: str, max_tokens: int = MAX_TOKENS, overlap_tokens: int = OVERLAP_TOKENS) -> list[Span]:
        """Cut a text into windows that overlap, exact to the token; this needs the tokenizer only.

        Args:
            text: the text.
            max_tokens: most tokens of a window, the end token included; 16 or more.
            overlap_tokens: tokens that a window shares with the one before it, at least; at most half of max_tokens.

        Returns:
            The windows in order, `text[span.start:span.end]` each; together they cover every character.

        Raises:
            TypeError: text is not a string.
            ValueError: max_tokens or overlap_tokens is out of range.
        """
        [text] = as_texts([text])
        return split(text, max_tokens, overlap_tokens, tokenization=self._tokenization())

    def encode_long_document(
        self,
        text: str,
        max_tokens: int = MAX_TOKENS,
        overlap_tokens: int = OVERLAP_TOKENS,
        *,
        instruction: str | None = None,
        show_progress: bool = False,
    ) -> list[tuple[Span, NDArray[np.float32]]]:
        """Embed all windows of one document, for stores with several vectors a document.

        Args:
            text: the document.
            max_tokens: most tokens of a window, the end token included; 16 or more.
            overlap_tokens: tokens that a window shares with the one before it, at least; at most half of max_tokens.
            instruction: as for `encode_documents`; its tokens come on top of a window's.
            show_progress: whether to draw a progress bar.

        Returns:
            Each window's place and its vector: float32 array, shape (dimensions,), unit length.

        Raises:
            TypeError: text is not a string.
            ValueError: max_tokens or overlap_tokens is out of range, or a window and the instruction exceed the
                encoder's own max_tokens.
        """
        started = time.perf_counter()
        [text] = as_texts([text])
        prompt = self._document_prompt if instruction is None else query_prompt(instruction)
        prompt_ids = self._tokenization().prompt(prompt)
        room = self.max_tokens - len(prompt_ids)
        if as_integer("max_tokens", max_tokens) > room:
            raise ValueError(f"max_tokens must be at most {room}, what the encoder reads of a text, got {max_tokens}")
        spans, ids = self._windows(text, prompt, max_tokens, overlap_tokens)
        embedded = self._hidden(ids, prompt_ids, [0] * len(ids), show_progress)
        self._count(1, ids, embedded, 0, started)
        return list(zip(spans, truncate(embedded.states, self.dimensions), strict=True))

    def _encode(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        return self._encode_all(texts, prompt, show_progress, chunk=False)

    def _encode_documents(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        return self._encode_all(texts, prompt, show_progress, chunk=self.settings.long_text == "chunk")

    def _encode_all(self, texts: list[str], prompt: str, show_progress: bool, *, chunk: bool) -> NDArray[np.float32]:
        started = time.perf_counter()
        # First, so that a device that is not there costs no work.
        self._engine()
        tokenization, max_tokens = self._tokenization(), self.max_tokens
        prompt_ids, token_ids, too_long = self._tokenized(texts, prompt)
        windows: dict[int, tuple[list[Span], list[NDArray[np.int64]]]] = {}
        if too_long and chunk:
            size = min(max_tokens - len(prompt_ids), MAX_TOKENS)
            if size < LEAST_TOKENS:
                raise ValueError(
                    f"max_tokens={max_tokens} leaves no room for windows: the instruction takes {len(prompt_ids)}, and "
                    f"a window {LEAST_TOKENS} at least"
                )
            overlap = min(OVERLAP_TOKENS, size // 10)
            windows = {index: self._windows(texts[index], prompt, size, overlap) for index, _ in too_long}
        elif too_long:
            self._report(too_long, len(texts), max_tokens)
            token_ids = [tokenization.cut(ids, max_tokens) for ids in token_ids]
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        parts: list[NDArray[np.int64]] = []
        owners: list[int] = []
        for index, whole in enumerate(token_ids):
            own = windows[index][1] if index in windows else [whole]
            parts += own
            owners += [index] * len(own)
        embedded = self._hidden(parts, prompt_ids, owners, show_progress)
        self._count(len(texts), parts, embedded, len(too_long) - len(windows), started)
        hidden = embedded.states
        if windows:
            hidden = _combined(truncate(hidden, hidden.shape[1]), owners, windows)
        return truncate(hidden, self.dimensions)

    def _tokenized(
        self, texts: list[str], prompt: str
    ) -> tuple[NDArray[np.int64], list[NDArray[np.int64]], list[tuple[int, int]]]:
        """Give the prompt's ids, each text's with the prompt, and (position, tokens) of those beyond `max_tokens`."""
        tokenization, max_tokens = self._tokenization(), self.max_tokens
        prompt_ids = tokenization.prompt(prompt)
        needed = len(prompt_ids) + tokenization.end_tokens
        if needed >= max_tokens:
            raise ValueError(
                f"max_tokens={max_tokens} leaves no room for a text: the instruction and the end token take {needed}"
            )
        token_ids = list(tokenization.encode(with_prompt(texts, prompt)))
        return prompt_ids, token_ids, [(at, len(ids)) for at, ids in enumerate(token_ids) if len(ids) > max_tokens]

    def _refusals(self, texts: list[str], prompt: str) -> dict[int, str]:
        if self.settings.long_text != "error":
            return {}
        _, _, too_long = self._tokenized(texts, prompt)
        return {index: too_many(length, self.max_tokens) for index, length in too_long}

    def _hidden(
        self,
        token_ids: list[NDArray[np.int64]],
        prompt_ids: NDArray[np.int64],
        owners: list[int],
        show_progress: bool,
    ) -> Embedded:
        """Compute pooled states, what is not finite again in float32; owners are the indexes that an error names."""
        embedded = self._engine().embed(
            token_ids, prompt_ids, batch_tokens=self.settings.batch_tokens, show_progress=show_progress
        )
        broken = np.flatnonzero(~np.isfinite(embedded.states).all(axis=1))
        if len(broken):
            embedded.states[broken] = self._in_float32(
                [token_ids[index] for index in broken], prompt_ids, [owners[index] for index in broken], owners[-1] + 1
            )
        return embedded

    def _count(
        self, texts: int, parts: list[NDArray[np.int64]], embedded: Embedded, truncated: int, started: float
    ) -> None:
        """Count a call that began at a time of `time.perf_counter`; parts are the token ids that it embedded."""
        seconds = time.perf_counter() - started
        tokens = sum(map(len, parts))
        usage = Usage(texts, tokens, truncated, embedded.cache_hits, embedded.cached_tokens, seconds)
        count(usage, self._counter)

    def _windows(
        self, text: str, prompt: str, max_tokens: int, overlap_tokens: int
    ) -> tuple[list[Span], list[NDArray[np.int64]]]:
        """Cut a document into windows that fit into the encoder's own `max_tokens` with the prompt before each."""
        tokenization = self._tokenization()
        prompt = "" if is_written_out(text) else prompt
        while True:
            spans = split(text, max_tokens, overlap_tokens, tokenization=tokenization)
            ids = list(tokenization.encode([prompt + text[span.start : span.end] for span in spans]))
            # Where the prompt's end and a window's beginning join, there may be a token more than in both.
            over = max(map(len, ids)) - self.max_tokens
            if over <= 0:
                return spans, ids
            max_tokens -= over
            overlap_tokens = min(overlap_tokens, max_tokens // 2)

    def _in_float32(
        self, token_ids: list[NDArray[np.int64]], prompt_ids: NDArray[np.int64], indexes: list[int], of: int
    ) -> NDArray[np.float32]:
        """Compute again what overflowed, as float16 does in the 8B (QwenLM/Qwen3-Embedding issue 164)."""
        from qwen3_embed_integrations.engine.engine import shared_engine

        settings = self.settings
        engine = shared_engine(
            self._pinned_source(), device=settings.device, dtype="float32", device_map=settings.device_map
        )
        embedded = engine.embed(token_ids, prompt_ids, batch_tokens=self.settings.batch_tokens, show_progress=False)
        hidden = embedded.states
        broken = np.flatnonzero(~np.isfinite(hidden).all(axis=1))
        if len(broken):
            raise FloatingPointError(
                f"{named(indexes[broken[0]], of)} has no finite vector, in float32 either: the weights are broken"
            )
        return hidden

    def _report(self, too_long: Sequence[tuple[int, int]], of: int, max_tokens: int) -> None:
        """Refuse texts of too many tokens, or warn of the first that is cut."""
        index, length = too_long[0]
        if self.settings.long_text == "error":
            raise ValueError(
                f"{named(index, of)} {too_many(length, max_tokens)}"
                + (f" ({len(too_long)} texts are too long)" if len(too_long) > 1 else "")
            )
        with self._lock:
            first, self._has_warned = not self._has_warned, True
        if first:
            warnings.warn(
                f"{named(index, of)} has {length} tokens and was cut to max_tokens={max_tokens}; "
                "further cuts are counted in truncated_texts without a warning",
                TruncationWarning,
                stacklevel=5,
            )

    def _check_limits(self) -> tuple[int, int]:
        """Return the model's (largest dimension, context), after checking that the settings lie within."""
        if self._limits is None:
            source = self._pinned or self._source
            size, context = source.limits()
            check_limits(self.settings.model, self.settings.dimensions, self.settings.max_tokens, size, context)
            # Together, since a folder may be written anew.
            self._limits, self._saved = (size, context), source.saved_limits()
        return self._limits

    def _saved_limits(self) -> tuple[int, int]:
        self._check_limits()
        return self._saved

    def _pinned_source(self) -> ModelSource:
        with self._lock:
            if self._pinned is None:
                self._pinned = self._source.pinned()
                self._limits = self._prompts = None
            return self._pinned

    def _engine(self) -> Engine:
        from qwen3_embed_integrations.engine.engine import shared_engine

        source = self._pinned_source()
        self._check_limits()
        with self._lock:
            if self._held_engine is None:
                self._held_engine = shared_engine(
                    source,
                    device=self.settings.device,
                    dtype=self.settings.dtype,
                    quantization=self.settings.quantization,
                    device_map=self.settings.device_map,
                )
            return self._held_engine

    def _tokenization(self) -> Tokenization:
        from qwen3_embed_integrations.engine.tokenization import shared_tokenization

        source = self._pinned_source()
        with self._lock:
            if self._held_tokenization is None:
                self._held_tokenization = shared_tokenization(source)
            return self._held_tokenization

    def __repr__(self) -> str:
        default = EncoderSettings().to_dict()
        shown = {name: value for name, value in self.settings.to_dict().items() if value != default[name]}
        shown = {"model": self.settings.model, **shown}
        return f"Qwen3Encoder({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _combined(
    vectors: NDArray[np.float32],
    owners: list[int],
    windows: Mapping[int, tuple[list[Span], list[NDArray[np.int64]]]],
) -> NDArray[np.float32]:
    """Give each text one vector: the mean of its windows' vectors, weighted by their tokens."""
    texts = np.array(owners)
    weights = np.ones(len(owners), dtype=np.float32)
    for index, (spans, _) in windows.items():
        weights[texts == index] = [span.tokens for span in spans]
    sums = np.zeros((texts[-1] + 1, vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, texts, vectors * weights[:, None])
    return sums


def _optional_integer(name: str, value: Any) -> int | None:
    return None if value is None else as_integer(name, value)


def _checked_device(device: Any) -> str | list[str] | None:
    if isinstance(device, (list, tuple)):
        return [str(name) for name in device]
    return None if device is None else str(device)


def _checked_device_map(device_map: Any) -> str | dict[str, Any] | None:
    if device_map is None or isinstance(device_map, str):
        return device_map
    if isinstance(device_map, Mapping):
        return dict(device_map)
    raise TypeError(f"device_map must be a string or a dictionary, got {type(device_map).__name__}")


def _checked_token(token: str | bool | None) -> str | bool | None:
    """Read an access token, which may come from a file with a newline at its end; no message shows it."""
    if isinstance(token, str):
        token = token.strip()
        if not (token.isascii() and token.isprintable()):
            raise ValueError("token holds characters that no access token has")
        return token
    if token is None or isinstance(token, bool):
        return token
    raise TypeError(f"token must be a string, a bool or None, got {type(token).__name__}")


def as_texts(texts: Iterable[str]) -> list[str]:
    """Check that these are texts, before any work.

    Args:
        texts: what a caller gave.

    Returns:
        The texts as a list.

    Raises:
        TypeError: it is a single string or no collection, or an item is not a string.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"texts must be a list of strings, got one {type(texts).__name__}: put it in a list")
    if not isinstance(texts, Iterable) or isinstance(texts, (Mapping, Set)):
        raise TypeError(f"texts must be a list of strings, got {type(texts).__name__}")
    result = list(texts)
    for index, text in enumerate(result):
        if not isinstance(text, str):
            name = named(index, len(result))
            raise TypeError(f"{name} must be a string, got {text!r:.80} ({type(text).__name__})")
    return result


def with_prompt(texts: Sequence[str], prompt: str) -> list[str]:
    """Write what the model reads: each text with the prompt before it, or as it stands where it has one already."""
    return [text if prompt and is_written_out(text) else prompt + text for text in texts]


def prompts_of(source: ModelSource) -> Prompts:
    """Choose what stands before texts where no instruction is given.

    Args:
        source: of the model.

    Returns:
        The prompts that its author saved with it; the models' own where there are none.

    Raises:
        ValueError: what is saved are no prompts.
    """
    if find_spec(source.location) is not None:
        return OWN_PROMPTS
    saved = source.optional(SENTENCE_TRANSFORMERS)
    prompts = saved_prompts(f"{source.location}/{SENTENCE_TRANSFORMERS}", saved)
    if prompts is None and saved and source.location not in _told:
        _told.add(source.location)
        logger.warning(
            "%s was saved without prompts: queries get the models' own, %r; query_instruction='' gives them none",
            source.location,
            OWN_PROMPTS.query,
        )
    return prompts or OWN_PROMPTS


# Models whose lack of prompts was told.
_told: set[str] = set()


def too_many(tokens: int, max_tokens: int) -> str:
    """Say that a text is too long, in the words that follow its name."""
    return f"has {tokens} tokens, more than max_tokens={max_tokens}"


def check_limits(model: str, dimensions: int | None, max_tokens: int | None, size: int, context: int) -> None:
    """Check that settings lie within what a model has.

    Args:
        model: its name, for the message.
        dimensions: components asked for; None for all of them.
        max_tokens: tokens to read at most; None for the context.
        size: components of the model's own vectors.
        context: tokens that it reads at most.

    Raises:
        ValueError: dimensions or max_tokens is out of range.
    """
    smallest = min(MIN_DIMENSIONS, size)
    if dimensions is not None and not smallest <= dimensions <= size:
        raise ValueError(f"dimensions must be between {smallest} and {size} for {model}, got {dimensions}")
    if max_tokens is not None and max_tokens > context:
        raise ValueError(f"max_tokens must be at most {context}, the context of {model}, got {max_tokens}")


def vector_space(version: str, dimensions: int, document_prompt: str) -> str:
    """Name the vectors of documents that can be compared, as the fingerprints of all encoders begin.

    Args:
        version: the model's name and revision.
        dimensions: components of the vectors.
        document_prompt: what stands before each document, or "".

    Returns:
        The name.
    """
    return f"{version}.d{dimensions}.doc-{short_hash(document_prompt)}"


def short_hash(prompt: str) -> str:
    """Name a prompt in a fingerprint: 8 hexadecimal digits, or "none" for the empty one."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:8] if prompt else "none"
