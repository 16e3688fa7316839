"""Windows over any text: they cover it, overlap, fit, and are cut where a reader would cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.encoder import TruncationWarning
from qwen3_embed_integrations.engine import tokenization as tokenization_module
from qwen3_embed_integrations.long_text import Span, split, visible
from qwen3_embed_integrations.models import TINY_FOLDER
from tests.conftest import cosines
from tests.long_texts import BLANKS, SPARSE, is_blank

WORDS = st.sampled_from(
    [
        "word",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        ". ",
        "!",
        "def f(x):",
        "中文字符",
        "。",
        "é",
        "e\u0301",
        "👨‍👩‍👧",
        "🇩🇪🇫🇷",
        "한국어",
        "நி",
        "<|endoftext|>",
        "\ud83d\ude00",
        "\ud800",
        "x" * 50,
        "123456",
        "\x00",
        "\n  ",
        "\n\u3000",
        "don't",
        " It's",
        "\u0301",
    ]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=60).map("".join), st.text(max_size=200))


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json"))


def tokens(tokenizer, text: str) -> int:
    """Count as the plain tokenizer does, the end token included."""
    return len(tokenizer.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")).ids)


def check(tokenizer, text, spans, max_tokens, overlap):
    assert spans[0].start == 0
    assert spans[-1].end == len(text)
    graphemes = {match.start() for match in regex.finditer(r"\X", text)} | {len(text)}
    longest = max((tokens(tokenizer, match.group()) for match in regex.finditer(r"\X", text)), default=0)
    for span in spans:
        assert span.tokens == tokens(tokenizer, text[span.start : span.end]) <= max_tokens
    for before, span in pairwise(spans):
        assert before.start < span.start <= before.end < span.end
        # A grapheme that takes much of a window leaves no room for more.
        if longest + overlap + 4 < max_tokens // 2:
            assert tokens(tokenizer, text[span.start : before.end]) - 1 >= overlap
        if longest < max_tokens:
            assert {span.start, before.end} <= graphemes


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(16, 80), st.integers(0, 20))
def test_windows_cover_fit_overlap_and_keep_graphemes(encoder, tokenizer, text, max_tokens, overlap):
    overlap = min(overlap, max_tokens // 2)
    check(tokenizer, text, encoder.split(text, max_tokens, overlap), max_tokens, overlap)


@settings(deadline=None, max_examples=100)
@given(st.lists(WORDS, min_size=20, max_size=60).map("".join))
def test_tokenizing_in_parts_changes_nothing(encoder, text):
    whole = encoder.split(text, 32, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization_module, "_CHARACTERS_AT_ONCE", 10)
        patch.setattr(tokenization_module, "_PARTS_AT_ONCE", 2)
        assert encoder.split(text, 32, 8) == whole


@pytest.mark.parametrize(
    "text", [*BLANKS.values(), *SPARSE.values()], ids=[*BLANKS, *(f"sparse {name}" for name in SPARSE)]
)
def test_windows_cover_what_is_blank_too_and_can_be_told_from_the_others(encoder, tokenizer, text):
    spans = encoder.split(text, 64, 16)
    check(tokenizer, text, spans, 64, 16)
    seen = visible(text, spans)
    assert seen == [span for span in spans if not is_blank(text[span.start : span.end])]
    assert len(seen) < len(spans)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["word", ".", "\u0600", *"".join(BLANKS.values())[::100], *" \n\u200b\u3164\x00"])))
def test_a_window_is_visible_by_its_own_characters(pieces):
    text = "".join(pieces)
    spans = [
        Span(start, end, 1) for start in range(len(text) + 1) for end in range(start, min(start + 5, len(text) + 1))
    ]
    assert visible(text, spans) == [span for span in spans if not is_blank(text[span.start : span.end])]


def test_a_text_that_fits_is_one_window(encoder):
    for text in ("", "short", "two\n\nparagraphs"):
        (span,) = encoder.split(text)
        assert (span.start, span.end, span.tokens) == (0, len(text), encoder.count_tokens([text])[0])


@pytest.mark.parametrize(
    ("unit", "ends"),
    [
        ("One sentence here. Another one there.\nA new line of words.\n\n", "\n\n"),
        ("One sentence here. Another one there.\nA new line of words and so on.\n", "\n"),
        ("One sentence here. Another one there! ", (".", "!")),
        ("word another third ", ("word", "another", "third")),
        ("这是一个句子。", "。"),
    ],
)
def test_windows_end_at_the_best_place_that_is_near(encoder, unit, ends):
    text = unit * 300
    for span in encoder.split(text, 400, 40)[:-1]:
        assert text[: span.end].endswith(ends)
        assert text[: span.start].endswith(ends) or span.start == 0


def test_surrogate_pairs_count_as_two_places(encoder):
    text = "\ud83d\ude00 some words \ud800 here. " * 40
    spans = encoder.split(text, 64, 8)
    check(Tokenizer.from_file(str(TINY_FOLDER / "tokenizer.json")), text, spans, 64, 8)


def test_long_words_and_huge_graphemes_are_cut_as_well(encoder, tokenizer):
    for text in ("x" * 20_000, "漢字" * 3000, "e" + "\u0301" * 500, "👨‍👩‍👧" * 200):
        check(tokenizer, text, encoder.split(text, 64, 16), 64, 16)


@pytest.mark.parametrize(
    ("max_tokens", "overlap", "message"),
    [
        (15, 0, "max_tokens must be at least 16, got 15"),
        (100, 51, "overlap_tokens must be between 0 and 50, half of a window, got 51"),
        (100, -1, "overlap_tokens must be between 0 and 50"),
    ],
)
def test_sizes_are_checked(encoder, max_tokens, overlap, message):
    with pytest.raises(ValueError, match=message):
        encoder.split("text", max_tokens, overlap)
    with pytest.raises(TypeError, match="the text must be a string, got None"):
        encoder.split(None)


def test_a_chunked_document_is_the_weighted_mean_of_its_windows(encoder):
    chunked = encoder.replaced(long_text="chunk", max_tokens=200)
    long, short = "Some sentence of a long story. " * 100, "short"
    vectors = chunked.encode_documents([short, long, short, long])
    spans = split(long, 200, 20, tokenization=encoder._tokenization())
    pieces = encoder.encode_documents([long[span.start : span.end] for span in spans])
    mean = np.average(pieces, axis=0, weights=[span.tokens for span in spans])
    mean /= np.linalg.norm(mean)
    expected = encoder.encode_documents([short])[0]
    assert (cosines(vectors, [expected, mean, expected, mean]) >= 0.99999).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert chunked.truncated_texts == 0
    # A cut vector is the whole one's beginning, as for short texts.
    cut = chunked.replaced(dimensions=64).encode_documents([long])
    assert cosines(cut, vectors[1:2, :64] / np.linalg.norm(vectors[1, :64])) >= 0.99999


def test_windows_leave_room_for_the_document_instruction(encoder, tokenizer):
    chunked = encoder.replaced(long_text="chunk", max_tokens=64, document_instruction="Find the section on warranty")
    long = "(Every window begins anew. " * 60
    vector = chunked.encode_documents([long])[0]
    room = 64 - len(encoder._tokenization().prompt(chunked._document_prompt))
    spans, ids = chunked._windows(long, chunked._document_prompt, room, 2)
    assert max(map(len, ids)) <= 64
    assert len(spans) > 5
    assert not np.allclose(vector, encoder.replaced(long_text="chunk", max_tokens=64).encode_documents([long])[0])


def test_queries_are_truncated_and_warn(encoder):
    chunked = encoder.replaced(long_text="chunk", max_tokens=64)
    with pytest.warns(TruncationWarning, match="index 1"):
        chunked.encode_queries(["short", "long " * 100])
    assert chunked.truncated_texts == 1


def test_all_windows_of_one_document(encoder):
    text = "A paragraph of a few words.\n\n" * 100
    found = encoder.encode_long_document(text, 100, 10)
    assert [span for span, _ in found] == encoder.split(text, 100, 10)
    expected = encoder.encode_documents([text[span.start : span.end] for span, _ in found])
    assert (cosines([vector for _, vector in found], expected) >= 0.99999).all()
    small = encoder.replaced(max_tokens=50, document_instruction="Find the section on warranty", long_text="error")
    with pytest.raises(ValueError, match="max_tokens must be at most"):
        small.encode_long_document(text, 50, 10)
    # The widest windows that fit beside the instruction, though its end joins with their beginnings.
    room = 50 - len(encoder._tokenization().prompt(small._document_prompt))
    assert len(small.encode_long_document("(word " * 100, room, 2)) > 5
    with pytest.raises(TypeError, match="the text must be a string"):
        encoder.encode_long_document(None)
    with pytest.raises(TypeError, match="max_tokens"):
        encoder.encode_long_document("text", "many")


def test_a_window_that_the_instruction_leaves_no_room_for_is_refused(encoder):
    small = encoder.replaced(max_tokens=24, document_instruction="Find the section on warranty", long_text="chunk")
    assert len(small.encode_documents(["short"])) == 1
    with pytest.raises(ValueError, match="max_tokens=24 leaves no room for windows"):
        small.encode_documents(["short", "long " * 100])


def test_the_policy_changes_the_fingerprint(encoder):
    assert encoder.replaced(long_text="chunk").fingerprint != encoder.fingerprint
    assert encoder.replaced(long_text="error").fingerprint == encoder.fingerprint
