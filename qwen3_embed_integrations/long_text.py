"""Windows over a long text: exact to the token, overlapping, cut where a reader would."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import regex

from qwen3_embed_integrations.matryoshka import as_integer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from qwen3_embed_integrations.engine.tokenization import Tokenization, TokenSpans

# What the page that this project was started from advises for long documents.
MAX_TOKENS = 20_000
OVERLAP_TOKENS = 2_000

# The part of a window in which a better place to cut is looked for.
_NEAR = 8

# Room for the longest code point's tokens after NFC, and for the end token.
LEAST_TOKENS = 16

# From the best place to cut to the worst; the end of the match is the place.
_PLACES = (
    re.compile(r"\n[^\S\n]*\n+"),
    re.compile(r"\n"),
    re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]"),  # noqa: RUF001  # the full-width signs are meant
    re.compile(r"\S(?=\s)"),
)
_GRAPHEMES = regex.compile(r"\X")

# Characters that draw nothing are not only white space: zero-width, control and format ones, fillers, blank Braille.
# A few format characters draw a sign, such as Arabic's for a year.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]|\p{Prepended_Concatenation_Mark}")


@dataclass(frozen=True)
class Span:
    """A window's place in its text.

    Attributes:
        start: its first character's position.
        end: the position after its last character, so that `text[start:end]` is the window.
        tokens: of the window as a text of its own, the end token included.
    """

    start: int
    end: int
    tokens: int


def split(
    text: str,
    max_tokens: int = MAX_TOKENS,
    overlap_tokens: int = OVERLAP_TOKENS,
    *,
    tokenization: Tokenization,
) -> list[Span]:
    """Cut a text into windows that overlap.

    A window ends, and the next begins, at the end of a paragraph, else of a line, a sentence or a word where one is
    near, and never inside a character that a reader sees as one (a grapheme cluster, Unicode Annex 29), unless that
    alone has more tokens than fit. Takes time in proportion to the text's length, since the text is tokenized once.

    Args:
        text: any text.
        max_tokens: most tokens of a window, the end token included; 16 or more.
        overlap_tokens: tokens that a window shares with the one before it, at least; at most half of max_tokens.
        tokenization: the model's tokenizer.

    Returns:
        The windows in order; together they cover every character. A text that fits is one window.

    Raises:
        ValueError: max_tokens or overlap_tokens is out of range.
    """
    max_tokens, overlap_tokens = as_integer("max_tokens", max_tokens), as_integer("overlap_tokens", overlap_tokens)
    if max_tokens < LEAST_TOKENS:
        raise ValueError(f"max_tokens must be at least {LEAST_TOKENS}, got {max_tokens}")
    if not 0 <= overlap_tokens <= max_tokens // 2:
        raise ValueError(
            f"overlap_tokens must be between 0 and {max_tokens // 2}, half of a window, got {overlap_tokens}"
        )
    return list(_Cutter(text, max_tokens, overlap_tokens, tokenization).windows())


def visible(text: str, spans: Iterable[Span]) -> list[Span]:
    """Keep the windows in which a reader sees something.

    Args:
        text: the text.
        spans: windows over it.

    Returns:
        Those with a visible character, in their order.
    """
    return [span for span in spans if _VISIBLE.search(text, span.start, span.end)]


class _Cutter:
    """Walks along the tokens of one text; places are counted in tokens before them."""

    def __init__(self, text: str, max_tokens: int, overlap: int, tokenization: Tokenization) -> None:
        self._text, self._overlap, self._tokenization = text, overlap, tokenization
        self._limit = max_tokens - tokenization.end_tokens
        self._spans: TokenSpans = tokenization.spans(text)
        # A place where a word ends too is one where the text's tokens are the windows' own.
        self._whole = np.concatenate([[True], self._spans.ends_word])

    def windows(self) -> Iterator[Span]:
        total = len(self._spans.ends)
        start = stop = 0
        while True:
            # Where what comes next takes most of a window: without an overlap, and at last inside a grapheme.
            for begin, whole in ((start, True), (stop, True), (stop, False)):
                if found := self._stop(begin, stop, whole):
                    break
            else:
                raise ValueError(f"the text at character {self._at(stop)} cannot be cut into windows this small")
            start, (stop, tokens) = begin, found
            end = self._at(stop) if stop < total else len(self._text)
            yield Span(self._at(start), end, tokens + self._tokenization.end_tokens)
            if stop == total:
                return
            start = self._next_start(start, stop)

    def _at(self, place: int) -> int:
        return int(self._spans.ends[place - 1]) if place else 0

    def _tokens(self, start: int, stop: int) -> int | None:
        """Count the tokens between two places as a text of their own; None if there are clearly too many."""
        if self._spans.exact and self._whole[start] and self._whole[stop]:
            return stop - start
        if stop - start > 2 * self._limit:
            return None
        end = len(self._text) if stop == len(self._spans.ends) else self._at(stop)
        piece = self._text[self._at(start) : end]
        return self._tokenization.count([piece])[0] - self._tokenization.end_tokens

    def _stop(self, start: int, before: int, whole: bool) -> tuple[int, int] | None:
        """Find where a window ends, and its tokens: as late as it fits, or a little earlier at a better place.

        None where no grapheme ends, or character if graphemes need not be whole.
        """
        everything = self._tokens(start, len(self._spans.ends))
        if everything is not None and everything <= self._limit:
            return len(self._spans.ends), everything
        # Beyond the window before, so that each adds something.
        first = max(start, before) + 1
        latest = min(start + self._limit, len(self._spans.ends) - 1)
        while latest >= first:
            place = self._best(first, latest) if whole else self._last_character(first, latest)
            if place is None:
                return None
            tokens = self._tokens(start, place)
            if tokens is not None and tokens <= self._limit:
                return place, tokens
            over = 1 if tokens is None else tokens - self._limit
            latest = place - over if place - over >= first else place - 1
        return None

    def _next_start(self, start: int, stop: int) -> int:
        """Find where the next window begins: with enough overlap, at a good place, and behind the last one's start."""
        latest = stop - self._overlap
        while self._overlap and latest > start:
            place = self._best(start + 1, latest)
            if place is None:
                break
            shared = self._tokens(place, stop)
            if shared is None or shared >= self._overlap:
                return place
            latest = place - (self._overlap - shared)
        # A window too short to share that much: the next shares what it can.
        shorter = range(start + 1, stop) if self._overlap else ()
        return next((place for place in shorter if self._is_possible(place)), stop)

    def _is_possible(self, place: int) -> bool:
        return bool(self._spans.ends_character[place - 1]) and self._is_between_graphemes(self._at(place))

    def _last_character(self, first: int, last: int) -> int | None:
        characters: NDArray[np.int64] = np.flatnonzero(self._spans.ends_character[first - 1 : last]) + first
        return int(characters[-1]) if len(characters) else None

    def _best(self, first: int, last: int) -> int | None:
        """Find the best place to cut between two, both included: the last of the best kind that is near the last.

        None where they lie in one grapheme.
        """
        low = max(first, last - self._limit // _NEAR)
        begin, end = self._at(low - 1), self._at(last)
        for pattern in _PLACES:
            for match in reversed([*pattern.finditer(self._text, begin, end)]):
                place = int(np.searchsorted(self._spans.ends, match.end(), side="right"))
                if low <= place <= last and self._at(place) == match.end() and self._is_possible(place):
                    return place
        for earliest in (low, first):
            for fits in (self._whole, self._spans.ends_character):
                offset = 0 if fits is self._whole else -1
                places = np.flatnonzero(fits[earliest + offset : last + 1 + offset]) + earliest
                for place in places[::-1].tolist():
                    if self._is_between_graphemes(self._at(place)):
                        return int(place)
        return None

    def _is_between_graphemes(self, position: int) -> bool:
        text = self._text
        if position in (0, len(text)):
            return True
        if text[position - 1].isascii() and text[position].isascii():
            return text[position - 1 : position + 1] != "\r\n"
        # A line's beginning is always a boundary, and the text's too.
        known = text.rfind("\n", max(0, position - 4096), position - 1) + 1 or max(0, position - 4096)
        return any(match.end() == position for match in _GRAPHEMES.finditer(text, known, position + 1))
