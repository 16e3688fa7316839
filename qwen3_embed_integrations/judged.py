"""Texts and questions of one's own with judgements, as they are read from files."""

from __future__ import annotations

import io
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3_embed_integrations.bulk.rows import Location, read_rows, require_pyarrow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

_JUDGEMENT = ("query-id", "corpus-id", "score")
_WITH_COLUMNS = {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}


@dataclass(frozen=True)
class Reading:
    """How files were read, and what they lack: counts.

    Attributes:
        template: by which each document was written.
        filled: documents in which a field of the template has something, by the field.
        unjudged: queries that nobody judged. They are left out.
        without_relevant: judged queries without a relevant document. They score 0.
        missing_queries: judgements of a query that is not there. They are left out.
        missing_documents: judgements that name a document which is not there, and so is never found.
        themselves: queries that are a document too, as `read_judged` finds them. It is left out of their results.
        relevant_themselves: how many of these are judged to be relevant to themselves, and so are never found.
        namesakes: queries with the id of a document that has another text, and stays in their results.
    """

    template: str
    filled: Mapping[str, int]
    unjudged: int = 0
    without_relevant: int = 0
    missing_queries: int = 0
    missing_documents: int = 0
    themselves: int = 0
    relevant_themselves: int = 0
    namesakes: int = 0

    def notes(self) -> list[str]:
        """Return a sentence on each count that is not 0, and on the template where it adds to the text."""
        counts = (
            (self.unjudged, "queries without judgements are left out"),
            (self.without_relevant, "judged queries have no relevant document: they score 0"),
            (self.missing_queries, "judgements that name a query which is not there are left out"),
            (self.missing_documents, "judgements name a document which is not there, and so is never found"),
            (self.themselves, "queries have the id of a document which is left out of their results"),
            (self.relevant_themselves, "of these are judged to be relevant to themselves, and so are never found"),
            (self.namesakes, "queries have the id of a document with another text, which stays in their results"),
        )
        filled = ", ".join(f"{name} in {count:,}" for name, count in self.filled.items())
        documents = [f"each document is {self.template!r}: {filled}"] if len(self.filled) > 1 else []
        return documents + [f"{sentence}: {count:,}" for count, sentence in counts if count]


@dataclass(frozen=True)
class Judged:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: what it is, for a table's title.
        documents: the texts.
        queries: the questions.
        relevant: one dictionary a query, from the place of a document to its grade, above 0. A place after the last
            document is that of one which is not there, and so is never found; a query without any scores 0. None where
            nobody judged.
        themselves: for each query the place of the document that it is itself, which is left out of its results; -1
            where it is none. None where no query is a document.
        reading: how the files were read. None where there were none.
    """

    name: str
    documents: Sequence[str]
    queries: Sequence[str]
    relevant: Sequence[Mapping[int, float]] | None
    themselves: Sequence[int] | None = None
    reading: Reading | None = None


def read_judged(
    corpus: Path,
    queries: Path,
    qrels: Path | None = None,
    *,
    text_column: str = "text",
    template: str | None = None,
    ignore_identical_ids: bool = False,
    delimiter: str | None = None,
) -> Judged:
    r"""Read files in the layout of BEIR (https://github.com/beir-cellar/beir), of any format that `embed` reads.

    That is JSON lines, JSON, CSV, TSV and Parquet, in UTF-8, perhaps packed (`.gz`, `.zst`).

    A query that is itself a document is not to find itself: the document with its id and its text is left out of its
    results, as BEIR and MTEB leave out whatever has its id.

    Args:
        corpus: rows with `_id`, or `id`, the text and perhaps `title`, which goes before the text.
        queries: rows with `_id`, or `id`, and the text.
        qrels: lines of query id, document id and grade, with tabs between them, perhaps under a heading; or the four
            columns of TREC, where a column that is not used follows the query id. In JSON, CSV and Parquet the columns
            query-id, corpus-id and score. None where nobody judged.
        text_column: the field with the text. A query has its own in `text` where it has no such field.
        template: how a document is written, each field's name in braces. A line whose fields are all empty is left out,
            and so is the blank before an empty field. None for the title on a line of its own, then the text.
        ignore_identical_ids: leave out what has the query's id, whatever its text, as BEIR's
            `EvaluateRetrieval.evaluate` does.
        delimiter: between the fields of CSV; None for a comma, and for a tab in a .tsv file.

    Returns:
        The texts. Where there are judgements, queries that nobody judged are left out. One whose judged documents are
        all irrelevant, or not there, stays and scores 0, as it does with BEIR and pytrec_eval. A warning is logged of
        judgements that name a document or a query which is not there.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: a file is missing, or cannot be read.
        ValueError: a line is not as described, with its file and number; the template is none, or names a field that
            no document has; or nothing that is there is relevant to a query that is.
    """
    require_pyarrow()
    writer = _Template(_default_template(text_column) if template is None else template)
    questions = {row.id: _text(row, text_column, "text") for row in _rows(queries, delimiter)}
    texts = _read_corpus(corpus, writer, text_column, questions, delimiter)
    if template is not None:
        writer.check(texts.fields, corpus)
    places = {id_: place for place, id_ in enumerate(texts.documents)}
    grades = None if qrels is None else _read_grades(qrels, questions, places, delimiter)
    judged = [id_ for id_ in questions if grades is None or id_ in grades.relevant]
    namesakes = [id_ for id_ in judged if id_ in places]
    themselves = {id_: places[id_] for id_ in namesakes if ignore_identical_ids or id_ in texts.questions}
    reading = Reading(
        template=writer.template,
        filled={name: texts.filled[name] for name in writer.fields if texts.filled[name]},
        unjudged=len(questions) - len(judged),
        themselves=len(themselves),
        namesakes=len(namesakes) - len(themselves),
    )
    relevant = None
    if grades is not None:
        relevant = [grades.relevant[id_] for id_ in judged]
        reading = replace(
            reading,
            without_relevant=sum(not of_query for of_query in relevant),
            missing_queries=grades.missing_queries,
            missing_documents=grades.missing_documents,
            relevant_themselves=sum(place in grades.relevant[id_] for id_, place in themselves.items()),
        )
    return Judged(
        name=corpus.name,
        documents=list(texts.documents.values()),
        queries=[questions[id_] for id_ in judged],
        relevant=relevant,
        themselves=[themselves.get(id_, -1) for id_ in judged] if themselves else None,
        reading=reading,
    )


def _default_template(text_column: str) -> str:
    return "{title}" if text_column == "title" else f"{{title}}\n{{{text_column}}}"


class _Texts(NamedTuple):
    """A corpus.

    documents: by their ids, as they are embedded. filled: how often each field of the template is. fields: that rows
    have. questions: ids of documents that are the query of their id.
    """

    documents: dict[str, str]
    filled: Counter[str]
    fields: dict[str, None]
    questions: set[str]


def _read_corpus(
    path: Path, writer: _Template, text_column: str, questions: Mapping[str, str], delimiter: str | None
) -> _Texts:
    texts = _Texts({}, Counter(), {}, set())
    for row in _rows(path, delimiter):
        text = _text(row, text_column) if text_column in writer.fields else row.fields.get(text_column)
        values = _values(row, writer.fields)
        texts.documents[row.id] = writer.write(values)
        texts.filled.update(name for name, value in values.items() if value)
        texts.fields.update(dict.fromkeys(row.fields))
        if row.id in questions and _same(questions[row.id], text, texts.documents[row.id]):
            texts.questions.add(row.id)
    return texts


def _same(question: str, *texts: object) -> bool:
    """Compare as BEIR's own sets need it, where a query and its document differ in white space."""
    return any(isinstance(text, str) and text.split() == question.split() for text in texts)


class _Template:
    """How the fields of a row become a text.

    Args:
        template: with the names of fields in braces.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        self._lines = [list(self._pieces(line)) for line in template.split("\n")]
        self.fields = list(dict.fromkeys(name for line in self._lines for _, name in line if name))
        if not self.fields:
            raise ValueError(f"the template {template!r} has no field, such as {{text}}")

    def _pieces(self, line: str) -> Iterator[tuple[str, str]]:
        # What stands before a field, and its name; at the end perhaps without one.
        try:
            for before, name, spec, conversion in Formatter().parse(line):
                if name == "" or spec or conversion:
                    raise ValueError("a field is its name in braces, and no more")
                yield before, name or ""
        except ValueError as error:
            message = f"the template {self.template!r} cannot be read: {error}; braces that stay are doubled"
            raise ValueError(message) from error

    def check(self, names: Collection[str], corpus: Path) -> None:
        """Refuse a field that no row has, most likely a name misspelt."""
        for name in self.fields:
            if name not in names:
                place = self.template.index(f"{{{name}}}") + 1
                raise ValueError(
                    f"the template {self.template!r} names the field {name!r} at character {place}, which no row of "
                    f"{corpus} has; they have {_listed(names)}"
                )

    def write(self, values: Mapping[str, str]) -> str:
        """Write a text, without the lines whose fields are all empty and the blank ones behind them."""
        lines: list[str] = []
        after_left_out = False
        for line in self._lines:
            names = [name for _, name in line if name]
            if names and not any(values[name] for name in names):
                after_left_out = True
            elif names or not after_left_out or any(before.strip() for before, _ in line):
                after_left_out = False
                lines.append(_write_line(line, values))
        return "\n".join(lines)


def _write_line(line: Sequence[tuple[str, str]], values: Mapping[str, str]) -> str:
    written = ""
    for place, (before, name) in enumerate(line):
        # An empty field takes the blank before it along, or at the start of the line the one behind it.
        if before.strip() or not name or (values[name] and (written or place == 0)):
            written += before
        written += values.get(name, "")
    return written


class _Row(NamedTuple):
    """A row of a file: where it is, its id and all its fields."""

    place: str
    id: str
    fields: Mapping[str, Any]


def _rows(path: Path, delimiter: str | None) -> Iterator[_Row]:
    seen: set[str] = set()
    for place, fields in _fields(path, delimiter):
        id_ = _id(fields, place)
        if id_ in seen:
            raise ValueError(f"{place} has the _id {id_!r} again")
        seen.add(id_)
        yield _Row(place, id_, fields)
    if not seen:
        raise ValueError(f"{path} is empty")


def _fields(path: Path, delimiter: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in read_rows(Location.of(path), delimiter=delimiter):
        if row.problem is not None:
            raise ValueError(f"{path}:{row.line} {row.problem}")
        if row.values is not None:
            yield f"{path}:{row.line}", row.values


def _id(fields: Mapping[str, Any], place: str) -> str:
    name = "_id" if "_id" in fields else "id"
    value = fields.get(name)
    if value is None or value == "":
        raise ValueError(f"{place} has no _id; it has {_listed(fields)}")
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise ValueError(f"{place} must have a string or a whole number as its {name}, got {value!r:.80}")
    return str(value)


def _text(row: _Row, *names: str) -> str:
    name = next((name for name in names if name in row.fields), None)
    if name is None:
        raise ValueError(
            f"{row.place} has no {names[0]!r}; it has {_listed(row.fields)}: text_column (--text-column) names the text"
        )
    text = row.fields[name]
    if not isinstance(text, str):
        raise ValueError(f"{row.place} must have a string as its {name!r}, got {text!r:.80}")
    return text


def _values(row: _Row, names: Sequence[str]) -> dict[str, str]:
    if not any(name in row.fields for name in names):
        raise ValueError(f"{row.place} has no field of the template's; it has {_listed(row.fields)}")
    values = {}
    for name in names:
        value = row.fields.get(name)
        if isinstance(value, (bool, list, dict)):
            raise ValueError(f"{row.place} must have a string or a number as its {name!r}, got {value!r:.80}")
        values[name] = "" if value is None else str(value)
    return values


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"


class _Grades(NamedTuple):
    """Judgements: as `Judged` has them but by the query's id, and how many name what is not there."""

    relevant: dict[str, dict[int, float]]
    missing_queries: int
    missing_documents: int


def _read_grades(path: Path, queries: Mapping[str, str], places: Mapping[str, int], delimiter: str | None) -> _Grades:
    relevant: dict[str, dict[int, float]] = {}
    judged: set[tuple[str, str]] = set()
    later: dict[str, int] = {}
    missing: dict[str, list[str]] = {"query": [], "document": []}
    for place, query, document, grade in _judgements(path, queries, places, delimiter):
        if (query, document) in judged:
            raise ValueError(f"{place} judges the document {document!r} for the query {query!r} again")
        judged.add((query, document))
        if query not in queries:
            missing["query"].append(f"{query!r} ({place})")
            continue
        if document not in places:
            missing["document"].append(f"{document!r} ({place})")
        grades = relevant.setdefault(query, {})
        if grade > 0:
            found = places.get(document)
            grades[later.setdefault(document, len(places) + len(later)) if found is None else found] = grade
    if not any(place < len(places) for grades in relevant.values() for place in grades):
        not_there = "".join(f"; the {kind} {named[0]} is not there" for kind, named in missing.items() if named)
        raise ValueError(f"{path} has no relevant document for any of the queries{not_there}")
    for kind, outcome in (("query", "left out"), ("document", "never found")):
        if missing[kind]:
            logger.warning(
                "judgements that name a %s which is not there, %s: %d, first %s",
                kind,
                outcome,
                len(missing[kind]),
                missing[kind][0],
            )
    return _Grades(relevant, len(missing["query"]), len(missing["document"]))


def _judgements(
    path: Path, queries: Collection[str], documents: Collection[str], delimiter: str | None
) -> Iterator[tuple[str, str, str, float]]:
    in_columns = not _WITH_COLUMNS.isdisjoint(path.suffixes)
    rows = _columns_of_judgements(path, delimiter) if in_columns else _lines_of_judgements(path)
    for at, (place, query, document, score) in enumerate(rows):
        try:
            grade = float(score)
        except ValueError:
            grade = math.nan
        if math.isfinite(grade):
            yield place, query, document, grade
        elif at > 0 or in_columns or query in queries or document in documents:
            raise ValueError(f"{place} must have a number as its grade, got {score!r:.80}")
        # Else it is the heading.


def _columns_of_judgements(path: Path, delimiter: str | None) -> Iterator[tuple[str, str, str, str]]:
    for place, fields in _fields(path, delimiter):
        if not all(name in fields for name in _JUDGEMENT):
            raise ValueError(f"{place} must have {_listed(_JUDGEMENT)}; it has {_listed(fields)}")
        query, document, score = (str(fields[name]) for name in _JUDGEMENT)
        yield place, query, document, score


def _lines_of_judgements(path: Path) -> Iterator[tuple[str, str, str, str]]:
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 3 and len(line.split()) == 4:
            query, _, document, score = line.split()
        elif len(fields) == 3:
            query, document, score = fields
        else:
            raise ValueError(f"{path}:{number} must be query id, document id and grade, got {line!r:.80}")
        yield f"{path}:{number}", query, document, score


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines that are not blank, with their numbers.

    Bytes are split, since text would end a line at U+2028 too, which an id may have.
    """
    file = Location.of(path)
    number = 0
    try:
        # Unpacked by the end of its name.
        with file.system.open_input_stream(file.path) as stream, io.BufferedReader(stream) as lines:
            for number, raw in enumerate(lines, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number} is not UTF-8: {error}") from error
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error}") from error
