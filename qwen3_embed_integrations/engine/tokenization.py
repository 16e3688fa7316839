"""Texts to token ids, exactly as the model's own tokenizer has them."""

from __future__ import annotations

import re
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from qwen3_embed_integrations.engine.model_files import refuse_pointer
from qwen3_embed_integrations.waiting import stop_if_left

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from qwen3_embed_integrations.engine.source import ModelSource

# Bound the memory that the tokenizer's own result objects take, and how long it goes on for a caller who has left.
_TEXTS_AT_ONCE = 1024
_CHARACTERS_OF_TEXTS_AT_ONCE = 2**22

# Prompts whose tokens are kept: a prompt takes as long to tokenize as a query.
_PROMPTS = 64

# Long texts are tokenized in parts of about this many characters, some at a time, for the same reason.
_CHARACTERS_AT_ONCE = 2**13
_PARTS_AT_ONCE = 128

# Qwen's pre-tokenizer always ends a word here: after the last of some line ends, and between a letter or digit and a
# space, comma or full stop.
_PART_END = re.compile("\\n(?=[^\\S\\r\\n]*\\S)|[^\\W_](?=[ \u3001\u3002\uff0c])")


@dataclass(frozen=True)
class TokenSpans:
    """Where the tokens of a text are.

    Attributes:
        ends: the position of the character after each token, shape (tokens,).
        ends_word: whether the pre-tokenizer ends a word with the token, shape (tokens,).
        ends_character: whether a character ends with the token, which several can share, shape (tokens,).
        exact: whether a part of the text that begins and ends with words has the same tokens when it stands alone.
    """

    ends: NDArray[np.int64]
    ends_word: NDArray[np.bool_]
    ends_character: NDArray[np.bool_]
    exact: bool


class Tokenization:
    """A model's tokenizer, read-only and hence safe to use from many threads.

    Special-token strings inside a text (`<|endoftext|>`) become the special token, as in the model's own tokenizer
    and on every server that runs it: the vector is still that of the whole text, since the last token is what counts.

    Args:
        folder: where tokenizer.json is.

    Raises:
        ValueError: there is no tokenizer.json, it can't be read, or it does not append an end token, on which these
            models pool.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ValueError(f"the model in {folder} has no tokenizer.json")
        refuse_pointer(path)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers has no class of its own
            raise ValueError(f"{path} is no tokenizer ({error}): fetch the model again, whole") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        self._end = whole[len(bare) :]
        self._prompts: dict[str, NDArray[np.int64]] = {}
        if whole[: len(bare)] != bare or not self._end:
            raise ValueError(
                f"the tokenizer in {folder} does not append an end token to a text (<|endoftext|> in the official "
                "models), and that token's hidden state is the embedding"
            )

    @property
    def end_tokens(self) -> int:
        """How many tokens the tokenizer appends to a text."""
        return len(self._end)

    def encode(self, texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
        """Tokenize texts, the end token included, however long they are.

        Args:
            texts: the texts, prompt included.

        Yields:
            Token ids of each text, shape (tokens,).

        Raises:
            CancelledError: nobody waits for them any more.
        """
        batch: list[str] = []
        characters = 0
        for text in texts:
            batch.append(encodable_text(text))
            characters += len(text)
            if len(batch) == _TEXTS_AT_ONCE or characters >= _CHARACTERS_OF_TEXTS_AT_ONCE:
                yield from self._encode_batch(batch)
                batch, characters = [], 0
        yield from self._encode_batch(batch)

    def _encode_batch(self, texts: list[str]) -> Iterator[NDArray[np.int64]]:
        stop_if_left()
        for encoding in self._tokenizer.encode_batch_fast(texts):
            yield np.asarray(encoding.ids, dtype=np.int64)

    def prompt(self, prompt: str) -> NDArray[np.int64]:
        """Tokenize a prompt, without the end token: shape (tokens,); some are kept, so do not write to it."""
        ids = self._prompts.get(prompt)
        if ids is None:
            ids = next(iter(self.encode([prompt])))[: -len(self._end)]
            if len(self._prompts) >= _PROMPTS:
                self._prompts = {}
            self._prompts[prompt] = ids
        return ids

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, the end token included."""
        return [len(ids) for ids in self.encode(texts)]

    def spans(self, text: str) -> TokenSpans:
        """Find where a text's tokens are, the end token left out; a long text is tokenized in parts, in parallel.

        Args:
            text: any text.

        Returns:
            The tokens' places in it.
        """
        encodable, joined = encodable_text(text), None
        if len(encodable) != len(text):
            # A surrogate pair takes two places in the caller's text.
            joined = np.array([match.start() for match in _PAIRS.finditer(text)]) - np.arange(len(_PAIRS.findall(text)))
        parts = list(_parts(encodable))
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            stop_if_left()
            group = parts[first : first + _PARTS_AT_ONCE]
            encodings = self._tokenizer.encode_batch([encodable[a:b] for a, b in group], add_special_tokens=False)
            for (start, _), encoding in zip(group, encodings, strict=True):
                places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start
                words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
                found.append((places[:, 0], places[:, 1], np.append(words[1:] != words[:-1], True)[: len(words)]))
        starts, ends, ends_word = (np.concatenate(columns) for columns in zip(*found, strict=True))
        ends_character = np.append(starts[1:] >= ends[:-1], True)[: len(ends)]
        if joined is not None:
            ends = ends + np.searchsorted(joined, ends, side="left")
        # A byte-level tokenizer, as Qwen's is, merges within words only and drops nothing between them.
        exact = "ByteLevel" in repr(self._tokenizer.pre_tokenizer)
        return TokenSpans(ends, ends_word.astype(bool) & ends_character, ends_character, exact)

    def cut(self, ids: NDArray[np.int64], max_tokens: int) -> NDArray[np.int64]:
        """Cut a text to its first tokens; the end token stays.

        Args:
            ids: a text's token ids, shape (tokens,).
            max_tokens: how many to keep, the end token included.

        Returns:
            Token ids, shape (at most max_tokens,).
        """
        if len(ids) <= max_tokens:
            return ids
        return np.concatenate([ids[: max_tokens - len(self._end)], self._end])


def _parts(text: str) -> Iterator[tuple[int, int]]:
    """Give the bounds of parts that the pre-tokenizer would separate too."""
    start = 0
    while len(text) - start > _CHARACTERS_AT_ONCE:
        match = _PART_END.search(text, start + _CHARACTERS_AT_ONCE)
        if match is None:
            break
        yield start, match.end()
        start = match.end()
    yield start, len(text)


_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def encodable_text(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which have no UTF-8 form, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


_tokenizations: weakref.WeakValueDictionary[ModelSource, Tokenization] = weakref.WeakValueDictionary()
_registry_lock = threading.Lock()


def shared_tokenization(source: ModelSource) -> Tokenization:
    """Find a model's tokenizer in this process, or load it; it needs no weights.

    Args:
        source: where the files come from, pinned.

    Returns:
        The tokenizer; it goes when nobody holds it any more.
    """
    with _registry_lock:
        tokenization = _tokenizations.get(source)
        if tokenization is None:
            tokenization = _tokenizations[source] = Tokenization(source.tokenizer_folder())
        return tokenization
