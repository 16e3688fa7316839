"""Long texts for the splitters' tests, and what all splitters have to keep."""

from __future__ import annotations

import textwrap
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

_tokenizer = Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))


def count_tokens(text: str) -> int:
    """Count as the plain tokenizer does, the end token included."""
    return len(_tokenizer.encode(text).ids)


def check_places(text: str, places: list[tuple[int, int]], size: int, overlap: int) -> None:
    """Check that pieces at these places cover the text in order, fit, and share enough."""
    assert places[0][0] == 0
    assert places[-1][1] == len(text)
    for start, end in places:
        assert count_tokens(text[start:end]) <= size
    for (before_start, before_end), (start, end) in pairwise(places):
        assert before_start < start <= before_end < end
        assert count_tokens(text[start:before_end]) - 1 >= overlap
