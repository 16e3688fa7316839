"""Long texts for the splitters' tests, and what all splitters have to keep."""

from __future__ import annotations

import textwrap
import unicodedata
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

from qwen3_embed_integrations.models import TINY_FOLDER

# Every piece of it is found in many places.
REPEATING = "Press the button twice. " * 300
REAL = Path(textwrap.__file__).read_text(encoding="utf-8")
UNICODE = "中文字符。 Wörter, e\u0301 und 👨‍👩‍👧 hier!\r\n\n \t" * 60
TEXTS = {"repeating": REPEATING, "real": REAL, "unicode": UNICODE}

# A document in which the answer to the question is deep inside, between others of its kind.
QUESTION = "how do I copy a folder?"
ANSWER = "Recursively copy an entire directory tree to a new folder."
HANDBOOK = "\n\n".join(
    [
        *["Return the square root of a number. Multiply two matrices."] * 40,
        ANSWER,
        *["Parse the arguments of the command line. Print a help message."] * 40,
    ]
)

# Texts in which a reader sees nothing: white space of ASCII and of Unicode, what has no width, fillers, controls.
BLANKS = {
    "newlines": "\n" * 3000,
    "spaces": " \t\r\n\f\v" * 500,
    "unicode spaces": "\u3000\u2003\u00a0\u2028\u2029\x85" * 200,
    "no width": "\u200b\u2060\ufeff\u00ad\u200d" * 200,
    "fillers": "\u3164\u115f\u2800\ufe0f\u034f" * 200,
    "controls": "\x00\x1f\x7f" * 200,
}
# Words that lie far apart: at the beginning, in the middle and at the end, and one that is alone.
SPARSE = {
    name: f"Copy a folder.{blank}Sort a list.{blank}{blank}\u0600{blank}Read a file." for name, blank in BLANKS.items()
}
_BLANK_CATEGORIES = ("Zs", "Zl", "Zp", "Cc", "Cf")
_BLANK_LETTERS_AND_MARKS = "\u3164\u115f\u2800\ufe0f\u034f"
_VISIBLE_FORMATS = "\u0600"

_tokenizer = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))


def count_tokens(text: str) -> int:
    """Count as the plain tokenizer does, the end token included."""
    return len(_tokenizer.encode(text).ids)


def is_blank(text: str) -> bool:
    """Say whether a reader sees nothing, for the characters that these tests have."""
    return all(
        character in _BLANK_LETTERS_AND_MARKS
        or (unicodedata.category(character) in _BLANK_CATEGORIES and character not in _VISIBLE_FORMATS)
        for character in text
    )


def check_visible(text: str, places: list[tuple[int, int]], size: int) -> None:
    """Check that pieces at these places are in order, fit, are not blank, and leave out only what is blank."""
    assert max(count_tokens(text[start:end]) for start, end in places) <= size
    assert not any(is_blank(text[start:end]) for start, end in places)
    assert is_blank(text[: places[0][0]] + text[places[-1][1] :])
    for (before_start, before_end), (start, end) in pairwise(places):
        assert before_start < start
        assert before_end < end
        assert is_blank(text[before_end:start])


def check_places(text: str, places: list[tuple[int, int]], size: int, overlap: int) -> None:
    """Check that pieces at these places cover the text in order, fit, and share enough."""
    assert places[0][0] == 0
    assert places[-1][1] == len(text)
    for start, end in places:
        assert count_tokens(text[start:end]) <= size
    for (before_start, before_end), (start, end) in pairwise(places):
        assert before_start < start <= before_end < end
        assert count_tokens(text[start:before_end]) - 1 >= overlap
