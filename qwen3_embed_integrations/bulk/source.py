"""Reading Parquet, JSON lines and CSV in parts that are the same every time."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec as find_module
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pyarrow as pa
    from pyarrow.fs import FileSystem

logger = logging.getLogger(__name__)

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
PART_CHARACTERS = 4 * 2**20
"""Where a part ends though it has fewer rows than asked for: about a million tokens."""

_PIECE = 2**20
_BATCH_ROWS = 4096
_LONGEST_FIELD = 2**31 - 1
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Location:
    """A file or folder on a file system that pyarrow opens.

    Attributes:
        name: as the user wrote it.
        system: local, or that of a URL (s3://, gs://, hdfs://).
        path: there.
    """

    name: str
    system: FileSystem
    path: str

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> Location:
        """Find the file system of a path or URL."""
        from pyarrow.fs import FileSystem, LocalFileSystem

        name = os.fspath(name)
        if "://" in name:
            return cls(name, *FileSystem.from_uri(name))
        return cls(name, LocalFileSystem(), str(Path(name).expanduser().resolve()))

    def child(self, name: str) -> Location:
        """Name something inside a folder."""
        return Location(f"{self.name.rstrip('/')}/{name}", self.system, f"{self.path.rstrip('/')}/{name}")


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file.

    Attributes:
        file: where they are.
        start: byte (JSON lines, CSV) or row (Parquet) that they begin at.
        stop: byte or row that they end before.
        line: number of their first line, or row in a Parquet file, from 1.
        rows: how many have a text.
        digest: of what they hold.
        names: of a CSV file's columns.
    """

    file: Location
    start: int
    stop: int
    line: int
    rows: int
    digest: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row without a text to embed.

    Attributes:
        file: where it is.
        row: its number there, from 1; in JSON lines and CSV that of its first line, a heading included.
        reason: what is wrong.
        content: the row as it stands in the file; None in a Parquet file.
    """

    file: str
    row: int
    reason: str
    content: str | None = None


@dataclass(frozen=True)
class Scan:
    """What a source holds.

    Attributes:
        parts: in the order of the files' names, and of the rows.
        schema: of all columns.
        bad: rows without a text.
    """

    parts: Sequence[Part]
    schema: pa.Schema
    bad: Sequence[BadRow]


def require_pyarrow() -> None:
    """Check that files can be read and written.

    Raises:
        ImportError: pyarrow is not installed.
    """
    if find_module("pyarrow") is None:
        raise ImportError("reading and writing files needs pyarrow: pip install 'qwen3-embed-integrations[bulk]'")


def find_files(source: Location) -> list[Location]:
    """Find the files of a source.

    Args:
        source: a file, or a folder with files in it and in folders below.

    Returns:
        Parquet, JSON lines and CSV files by name; those whose names begin with a dot or an underscore are left alone.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is a file of another format, or has none of these.
    """
    from pyarrow.fs import FileSelector, FileType

    [info] = source.system.get_file_info([source.path])
    if info.type == FileType.NotFound:
        raise FileNotFoundError(f"there is no {source.name!r}")
    if info.type == FileType.File:
        if _format(source) is None:
            known = ", ".join(FORMATS)
            raise ValueError(f"{source.name!r} must end in one of {known}; what is compressed has to be unpacked first")
        return [source]
    found = source.system.get_file_info(FileSelector(source.path, recursive=True))
    names = sorted(info.path[len(source.path) :].strip("/") for info in found if info.type == FileType.File)
    files = [source.child(name) for name in names if not any(piece[0] in "._" for piece in name.split("/"))]
    known_files = [file for file in files if _format(file) is not None]
    if not known_files:
        raise ValueError(f"{source.name!r} has no file that ends in one of {', '.join(FORMATS)}")
    if len(known_files) < len(files):
        others = [file.name for file in files if _format(file) is None]
        logger.warning("%d files are of other formats and are not read, %s first", len(others), others[0])
    return known_files


def scan(files: Iterable[Location], text_column: str, part_rows: int) -> Scan:
    """Read everything once, to check every row and to know where the parts begin.

    Args:
        files: what to read.
        text_column: the column to embed.
        part_rows: rows of a part at most.

    Returns:
        The parts, the columns of all files together, and the rows without a text.

    Raises:
        ValueError: a file can't be read, has no such column, or has a column of two types.
    """
    import pyarrow as pa

    parts: list[Part] = []
    bad: list[BadRow] = []
    schema = pa.schema([])
    for file in files:
        scan_file = _scan_parquet if _format(file) == "parquet" else _scan_text
        for part, columns in scan_file(file, text_column, part_rows, bad):
            try:
                schema = pa.unify_schemas([schema, columns], promote_options="permissive")
            except pa.ArrowException as error:
                raise ValueError(f"{file.name!r} has a column of another type than before: {error}") from error
            parts.append(part)
    return Scan(parts, schema, bad)


def read_texts(file: Location, text_column: str) -> Iterator[str]:
    """Read the texts of one file.

    Args:
        file: Parquet, JSON lines or CSV.
        text_column: the column with the texts.

    Yields:
        The texts in order.

    Raises:
        ValueError: the file can't be read, has no such column, or has a row without a text; the message has its place.
    """
    if _format(file) == "parquet":
        place = 1
        for column, problems in _parquet_texts(file, text_column)[1]:
            for at, problem in problems.items():
                raise ValueError(f"{file.name}:{place + at} {problem}")
            yield from column.to_pylist()
            place += len(column)
        return
    start, line, names = _heading(file, text_column) if _format(file) == "csv" else (0, 1, ())
    with _opened(file, start) as lines:
        for row in _rows(file, lines, text_column, names, line):
            if row.problem is not None:
                raise ValueError(f"{file.name}:{row.line} {row.problem}")
            if row.values is not None:
                yield row.values[text_column]


class Reader:
    """Reads parts as tables; quickest where one follows the other.

    Args:
        schema: of the tables.
        text_column: the column to embed.
    """

    def __init__(self, schema: pa.Schema, text_column: str) -> None:
        self._schema = schema
        self._text_column = text_column
        self._parquet: _ParquetRows | None = None

    def read(self, part: Part) -> pa.Table:
        """Read a part.

        Args:
            part: of the scan that the schema is from.

        Returns:
            Its rows that have a text, with all columns of the schema.

        Raises:
            ValueError: the file is no longer the one that was scanned.
        """
        table = self._read_parquet(part) if _format(part.file) == "parquet" else self._read_text(part)
        if table.num_rows != part.rows:
            raise ValueError(f"{part.file.name!r} has changed since this began: run it again")
        return table

    def _read_text(self, part: Part) -> pa.Table:
        import pyarrow as pa

        with _opened(part.file, part.start, part.stop) as lines:
            rows = [row.values for row in _rows(part.file, lines, self._text_column, part.names) if row.values]
        columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in self._schema]
        return pa.table(columns, schema=self._schema)

    def _read_parquet(self, part: Part) -> pa.Table:
        import pyarrow as pa

        if self._parquet is None or self._parquet.file != part.file or self._parquet.place > part.start:
            self._parquet = _ParquetRows(part.file, part.start)
        table = self._parquet.take(part.start, part.stop)
        bad = _bad_texts(table.column(self._text_column))
        if bad:
            table = table.filter(pa.array([place not in bad for place in range(table.num_rows)]))
        columns = [
            table.column(field.name).cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in self._schema
        ]
        return pa.table(columns, schema=self._schema)


class _Row(NamedTuple):
    """A row of JSON lines or CSV, with the number of its first line; neither values nor a problem: a blank line."""

    raw: bytes
    line: int
    values: dict[str, Any] | None = None
    problem: str | None = None


def _format(file: Location) -> str | None:
    return FORMATS.get(Path(file.path).suffix.lower())


@contextmanager
def _opened(file: Location, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
    # The lines between two bytes.
    with io.BufferedReader(file.system.open_input_file(file.path), _PIECE) as stream:
        stream.seek(start)

        def lines() -> Iterator[bytes]:
            place = start
            while (stop is None or place < stop) and (line := stream.readline()):
                place += len(line)
                yield line

        yield lines()


def _rows(
    file: Location, lines: Iterator[bytes], text_column: str, names: Sequence[str], line: int = 1
) -> Iterator[_Row]:
    return _json_rows(lines, text_column) if _format(file) == "jsonl" else _csv_rows(file, lines, names, line)


def _json_rows(lines: Iterator[bytes], text_column: str) -> Iterator[_Row]:
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            yield _Row(raw, number)
            continue
        try:
            values = json.loads(raw.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
            if b"\\ud" in raw.lower():
                values = _without_surrogates(values)
        except (ValueError, RecursionError) as error:
            yield _Row(raw, number, problem=f"is not JSON in UTF-8: {error}")
            continue
        problem = None
        if not isinstance(values, dict):
            problem = "is not a JSON object"
        elif text_column not in values:
            problem = f"has no {text_column!r}"
        elif not isinstance(values[text_column], str):
            text = values[text_column]
            problem = f"has {text_column!r}: " + ("null" if text is None else f"{type(text).__name__}, not a string")
        yield _Row(raw, number, values if problem is None else None, problem)


def _without_surrogates(values: Any) -> Any:
    # Lone ones have no UTF-8 form, which Arrow keeps; the encoder reads them as U+FFFD too.
    return json.loads(_SURROGATES.sub("\ufffd", json.dumps(values, ensure_ascii=False)))


def _csv_rows(file: Location, lines: Iterator[bytes], names: Sequence[str], line: int = 1) -> Iterator[_Row]:
    taken: list[bytes] = []

    def decoded() -> Iterator[str]:
        for raw in lines:
            taken.append(raw)
            yield (raw if names else raw.removeprefix(codecs.BOM_UTF8)).decode("utf-8", "surrogateescape")

    # The csv module's own limit, less than a document of 32,768 tokens, holds for the whole process.
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        for fields in csv.reader(decoded(), strict=True):
            raw = b"".join(taken)
            if not fields:
                yield _Row(raw, line)
            elif names and len(fields) != len(names):
                yield _Row(raw, line, problem=f"has {len(fields)} fields, the heading {len(names)}")
            elif any(_SURROGATES.search(field) for field in fields):
                yield _Row(raw, line, problem="is not UTF-8")
            else:
                keys = names or [str(place) for place in range(len(fields))]
                yield _Row(raw, line, dict(zip(keys, fields, strict=True)))
            line += len(taken)
            taken.clear()
    except csv.Error as error:
        raise ValueError(f"{file.name}:{line} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _scan_text(file: Location, text_column: str, part_rows: int, bad: list[BadRow]) -> Iterator[tuple[Part, pa.Schema]]:
    start, line, names = _heading(file, text_column) if _format(file) == "csv" else (0, 1, ())
    stop, characters, first = start, 0, line
    values: list[dict[str, Any]] = []
    digest = hashlib.blake2b(repr(names).encode("utf-8", "replace"))
    with _opened(file, start) as lines:
        for row in _rows(file, lines, text_column, names, line):
            stop += len(row.raw)
            if stop - start == len(row.raw):
                first = row.line
            if row.problem is not None:
                bad.append(BadRow(file.name, row.line, row.problem, row.raw.decode("utf-8", "replace")))
            if row.values is None:
                continue
            # Of the texts' rows alone, so that a part stays what it is when others are repaired or dropped.
            digest.update(row.raw)
            values.append(row.values)
            characters += len(row.values[text_column])
            if len(values) == part_rows or characters >= PART_CHARACTERS:
                part = Part(file, start, stop, first, len(values), digest.hexdigest(), names)
                yield part, _columns(part, values, text_column)
                start, characters, values = stop, 0, []
                digest = hashlib.blake2b(repr(names).encode("utf-8", "replace"))
    if values:
        part = Part(file, start, stop, first, len(values), digest.hexdigest(), names)
        yield part, _columns(part, values, text_column)


def _heading(file: Location, text_column: str) -> tuple[int, int, tuple[str, ...]]:
    # The byte and the line that a CSV file's rows begin at, and its columns.
    with _opened(file) as lines:
        row = next(_csv_rows(file, lines, ()), None)
    if row is None or row.values is None:
        raise ValueError(f"{file.name}:1 must be a heading with the names of the columns")
    names = tuple(row.values.values())
    _check_names(file, text_column, names)
    return len(row.raw), 1 + row.raw.count(b"\n"), names


def _check_names(file: Location, text_column: str, names: Sequence[str]) -> None:
    if text_column not in names:
        raise ValueError(f"{file.name!r} has no column {text_column!r}; it has {', '.join(map(repr, names))}")
    if len(set(names)) < len(names):
        raise ValueError(f"{file.name!r} has two columns of one name: {', '.join(map(repr, names))}")


def _columns(part: Part, rows: Sequence[dict[str, Any]], text_column: str) -> pa.Schema:
    import pyarrow as pa

    fields = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if name == text_column:
            fields.append(pa.field(name, pa.string()))
            continue
        try:
            # More than the type: numbers too large for it are found here.
            fields.append(pa.field(name, pa.array([row.get(name) for row in rows]).type))
        except (pa.ArrowException, OverflowError) as error:
            where = f"the {part.rows:,} rows from {part.file.name}:{part.line} on"
            raise ValueError(f"column {name!r} has no one type in {where}: {error}") from error
    return pa.schema(fields)


def _scan_parquet(
    file: Location, text_column: str, part_rows: int, bad: list[BadRow]
) -> Iterator[tuple[Part, pa.Schema]]:
    import pyarrow.compute as pc

    schema, columns = _parquet_texts(file, text_column)
    digest = _digest(file)
    start = place = rows = characters = 0
    for column, problems in columns:
        bad += [BadRow(file.name, place + at + 1, reason) for at, reason in problems.items()]
        for at, length in enumerate(pc.fill_null(pc.binary_length(column), 0).to_pylist()):
            place += 1
            if at not in problems:
                rows += 1
                characters += length
            if rows == part_rows or characters >= PART_CHARACTERS:
                yield _parquet_part(file, start, place, rows, digest), schema
                start, rows, characters = place, 0, 0
    if rows:
        yield _parquet_part(file, start, place, rows, digest), schema


def _parquet_texts(
    file: Location, text_column: str
) -> tuple[pa.Schema, Iterator[tuple[pa.ChunkedArray, dict[int, str]]]]:
    # A file's columns, and batches of its texts with what is wrong by place.
    import pyarrow as pa

    parquet = _open_parquet(file)
    schema = parquet.schema_arrow
    _check_names(file, text_column, schema.names)
    kind = schema.field(text_column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(value_kind) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{file.name!r} has {kind} in the column {text_column!r}, not text")
    batches = parquet.iter_batches(_BATCH_ROWS, columns=[text_column])
    columns = (pa.chunked_array([batch.column(0)]).cast(pa.large_string()) for batch in batches)
    return schema, ((column, _bad_texts(column)) for column in columns)


def _parquet_part(file: Location, start: int, stop: int, rows: int, digest: str) -> Part:
    return Part(file, start, stop, start + 1, rows, hashlib.blake2b(f"{digest} {start} {stop}".encode()).hexdigest())


def _open_parquet(file: Location) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without reading ahead, so that memory does not grow with a file's row groups.
        return pq.ParquetFile(file.system.open_input_file(file.path), pre_buffer=False, buffer_size=_PIECE)
    except pa.ArrowException as error:
        raise ValueError(f"{file.name!r} is not a Parquet file: {error}") from error


def _digest(file: Location) -> str:
    digest = hashlib.blake2b()
    with file.system.open_input_stream(file.path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _bad_texts(column: pa.ChunkedArray) -> dict[int, str]:
    import pyarrow as pa
    import pyarrow.compute as pc

    bad = dict.fromkeys(np.flatnonzero(pc.is_null(column).to_numpy()).tolist(), "is null")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for place, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                bad[place] = f"is not UTF-8: {error}"
    return dict(sorted(bad.items()))


class _ParquetRows:
    """The rows of one file, forward only, so that a large row group is decoded once."""

    def __init__(self, file: Location, start: int) -> None:
        import pyarrow as pa

        self.file = file
        parquet = _open_parquet(file)
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = list(accumulate(sizes))
        first = next(group for group, end in enumerate(ends) if end > start)
        self.place = ends[first] - sizes[first]
        self._batches = parquet.iter_batches(_BATCH_ROWS, row_groups=range(first, len(sizes)))
        self._rest = pa.Table.from_batches([], parquet.schema_arrow)

    def take(self, start: int, stop: int) -> pa.Table:
        import pyarrow as pa

        pieces = []
        while self.place < stop:
            if not self._rest.num_rows:
                self._rest = pa.Table.from_batches([next(self._batches)])
            size = min(self._rest.num_rows, (start if self.place < start else stop) - self.place)
            if self.place >= start:
                pieces.append(self._rest.slice(0, size))
            self._rest = self._rest.slice(size)
            self.place += size
        return pa.concat_tables(pieces)
