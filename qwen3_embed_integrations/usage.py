"""What encoders were asked for and what it took: texts, tokens, cut texts, what was kept from before, seconds."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Usage:
    """Counts over calls that returned; a call that failed is left out.

    Attributes:
        texts: queries and documents that were embedded.
        tokens: tokens of these texts as the model reads them: instruction and end token included, and of a text that
            was cut or windowed what was left. A text given twice counts twice, as a server would charge for it. Of a
            server, the number that it answers with, or else that of the model's tokenizer on this machine; where there
            is neither, they are left out with a warning.
        truncated_texts: texts that were cut to `max_tokens`.
        cache_hits: texts, or windows of them, that equal an earlier one of their call and were not computed again.
        cached_tokens: those of `tokens` that were not computed: all of a cache hit, and before any other text the
            instruction, whose keys and values are kept. What a server keeps is not known: it counts 0.
        seconds: from each call to its return, loading the model and waiting for other callers included; calls at once
            add up.
    """

    texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    cache_hits: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.texts + other.texts,
            self.tokens + other.tokens,
            self.truncated_texts + other.truncated_texts,
            self.cache_hits + other.cache_hits,
            self.cached_tokens + other.cached_tokens,
            self.seconds + other.seconds,
        )


class UsageCounter:
    """Adds up usage, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """What was counted so far."""
        return self._usage

    def add(self, usage: Usage) -> None:
        """Count a call.

        Args:
            usage: what it took.
        """
        with self._lock:
            self._usage += usage


_recorders: ContextVar[tuple[UsageCounter, ...]] = ContextVar("usage_recorders", default=())


@contextmanager
def record_usage() -> Iterator[UsageCounter]:
    """Count what a block takes, whichever encoders and frameworks embed in it, and whatever other threads do meanwhile.

    Calls count that this thread or task makes, and what it awaits. A thread pool that runs calls without the caller's
    context (`contextvars.copy_context`) is left out.

    Yields:
        A counter; its `usage` is what was counted so far.

    Example:
        >>> from qwen3_embed_integrations import Qwen3Encoder, record_usage
        >>> encoder = Qwen3Encoder("tiny")
        >>> with record_usage() as recorded:
        ...     vectors = encoder.encode_documents(["a", "b", "a"])
        >>> recorded.usage.texts, recorded.usage.tokens, recorded.usage.cache_hits
        (3, 6, 1)
    """
    counter = UsageCounter()
    token = _recorders.set((*_recorders.get(), counter))
    try:
        yield counter
    finally:
        _recorders.reset(token)


def count(usage: Usage, own: UsageCounter) -> None:
    """Count a call for its encoder and for the blocks that it was made in.

    Args:
        usage: what it took.
        own: the encoder's counter.
    """
    own.add(usage)
    for counter in _recorders.get():
        counter.add(usage)
