"""A source in parts that are the same every time: found, checked row by row, and read again one after the other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwen3_embed_integrations.bulk.columns import Columns, converter, filled
from qwen3_embed_integrations.bulk.rows import (
    DOCUMENTS,
    ENDS,
    FORMATS,
    PIECE,
    Location,
    Row,
    check_names,
    csv_rows,
    delimiter_of,
    format_of,
    heading_of,
    is_document,
    is_packed,
    json_items,
    json_rows,
    layout_of,
    lines_of,
    open_parquet,
    read_document,
    read_rows,
    require_pyarrow,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow as pa

__all__ = ["FORMATS", "Location", "require_pyarrow"]

logger = logging.getLogger(__name__)

PART_CHARACTERS = 4 * 2**20
"""Where a part ends though it has fewer rows than asked for: about a million tokens."""

PATH_COLUMN = "source"
"""The column that tells which file a document was."""

_BATCH_ROWS = 4096
# Texts whose length is checked at once.
_CHECKED = 256

Refusals = Callable[[Sequence[str]], dict[int, str]]
"""Which of some texts will not be embedded, by position, and why."""


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a source.

    Attributes:
        text_column: the column to embed.
        part_rows: rows of a part at most.
        columns: the others to keep; None for all.
        delimiter: between the fields of CSV; None for the file's own.
    """

    text_column: str
    part_rows: int
    columns: tuple[str, ...] | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file, or some files that are a text each.

    Attributes:
        file: where the rows are; the first of the files.
        start: byte (JSON lines, CSV, counted in what is unpacked) or row (Parquet, JSON arrays) that they begin at.
        stop: byte or row that they end before.
        line: number of their first line or row, from 1.
        rows: how many are embedded.
        digest: of what they hold.
        names: of a CSV file's columns.
        skipped: lines or rows among them that are not.
        partition: columns and values that the folders' names give (lang=en).
        documents: the files, where each is a text.
    """

    file: Location
    start: int
    stop: int
    line: int
    rows: int
    digest: str
    names: tuple[str, ...] = ()
    skipped: tuple[int, ...] = ()
    partition: tuple[tuple[str, Any], ...] = ()
    documents: tuple[Location, ...] = ()


@dataclass(frozen=True)
class BadRow:
    """A row that is not embedded.

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
        schema: of the columns to keep.
        bad: rows that are not embedded.
    """

    parts: Sequence[Part]
    schema: pa.Schema
    bad: Sequence[BadRow]


class _Placed(NamedTuple):
    """A row, and the bytes or rows of the file between which it is."""

    start: int
    stop: int
    row: Row


def find_files(source: Location) -> list[Location]:
    """Find the files of a source.

    Args:
        source: a file, or a folder with files in it and in folders below.

    Returns:
        By name, those with a row a text (`FORMATS`), or else those that are a text each (`DOCUMENTS`); those whose
        names begin with a dot or an underscore are left alone.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is a file of another format, or has none of these.
    """
    from pyarrow.fs import FileSelector, FileType

    [info] = source.system.get_file_info([source.path])
    if info.type == FileType.NotFound:
        raise FileNotFoundError(f"there is no {source.name!r}")
    if info.type == FileType.File:
        if format_of(source) is None and not is_document(source):
            raise ValueError(f"{source.name!r} must end in one of {ENDS}; or, as one text, in {', '.join(DOCUMENTS)}")
        return [source]
    found = source.system.get_file_info(FileSelector(source.path, recursive=True))
    names = sorted(info.path[len(source.path) :].strip("/") for info in found if info.type == FileType.File)
    files = [source.child(name) for name in names if not any(piece[0] in "._" for piece in name.split("/"))]
    known = [file for file in files if format_of(file) is not None] or [file for file in files if is_document(file)]
    if not known:
        raise ValueError(f"{source.name!r} has no file that ends in one of {ENDS}, nor in {', '.join(DOCUMENTS)}")
    if len(known) < len(files):
        others = [file.name for file in files if file not in known]
        logger.warning("%d files are of other formats and are not read, %s first", len(others), others[0])
    return known


def scan(
    origin: Location,
    files: Sequence[Location],
    wanted: Wanted,
    refusals: Refusals | None = None,
    report: Callable[[int], object] = lambda rows: None,
) -> Scan:
    """Read everything once, to check every row and to know where the parts begin.

    Args:
        origin: the source.
        files: of it, what to read.
        wanted: what is wanted of it.
        refusals: tells which texts will not be embedded; None where all will.
        report: told how many rows were read, again and again.

    Returns:
        The parts, the columns of all files together, and the rows that are not embedded.

    Raises:
        OSError: a file can't be read.
        ValueError: a file is not what its name says, has no such column, or has a column of two types.
    """
    scanner = _Scanner(wanted, refusals, report)
    if is_document(files[0]):
        parts = list(scanner.documents(origin, files))
        return Scan(parts, scanner.columns.schema(), scanner.bad)
    partitions, types = _partitions(origin, files)
    parts = []
    for file in files:
        scan_file = scanner.parquet if format_of(file) == "parquet" else scanner.text
        parts += scan_file(file, partitions[file.path])
        for name, _ in partitions[file.path]:
            if scanner.columns.takes(name):
                scanner.columns.add_type(name, types[name], f"{file.name}'s folder", file)
    schema = scanner.columns.schema()
    for file in files:
        if format_of(file) == "parquet":
            _check_casts(file, schema, {name for name, _ in partitions[file.path]})
    return Scan(parts, schema, scanner.bad)


def read_texts(file: Location, text_column: str, *, delimiter: str | None = None) -> Iterator[str]:
    """Read the texts of one file.

    Args:
        file: in one of `FORMATS`.
        text_column: the column with the texts.
        delimiter: between the fields of CSV.

    Yields:
        The texts in order.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not what its name says, has no such column, or has a row without a text; the message has the
            place.
    """
    if format_of(file) == "parquet":
        place = 1
        for column, problems in _parquet_texts(file, text_column)[1]:
            for at, problem in problems.items():
                raise ValueError(f"{file.name}:{place + at} {problem}")
            yield from column.to_pylist()
            place += len(column)
        return
    if layout_of(file) == "csv":
        _check_text_column(file, text_column, heading_of(file, delimiter)[2])
    for row in read_rows(file, delimiter=delimiter):
        wrong = row.problem if row.values is None else text_problem(row.values, text_column)
        if wrong is not None:
            raise ValueError(f"{file.name}:{row.line} {wrong}")
        if row.values is not None:
            yield row.values[text_column]


def text_problem(values: dict[str, Any], text_column: str) -> str | None:
    """Say why a row has no text, or nothing."""
    if text_column not in values:
        return f"has no {text_column!r}"
    text = values[text_column]
    if isinstance(text, str):
        return None
    return f"has {text_column!r}: " + ("null" if text is None else f"{type(text).__name__}, not a string")


class _Scanner:
    """Checks rows, collects what is wrong with them, and cuts files into parts."""

    def __init__(self, wanted: Wanted, refusals: Refusals | None, report: Callable[[int], object]) -> None:
        self.columns = Columns(wanted.text_column, wanted.columns)
        self.bad: list[BadRow] = []
        self._wanted = wanted
        self._refusals = refusals
        self._report = report

    def text(self, file: Location, partition: Sequence[tuple[str, Any]]) -> Iterator[Part]:
        """Cut a file of JSON or CSV into parts."""
        layout, start, line = layout_of(file), 0, 1
        names: tuple[str, ...] = ()
        if layout == "csv":
            start, line, names = heading_of(file, self._wanted.delimiter)
            _check_text_column(file, self._wanted.text_column, names)
        add = self.columns.add_csv if layout == "csv" else self.columns.add_json
        kept: list[tuple[int, dict[str, Any]]] = []
        skipped: list[int] = []
        digest, characters, first, stop = _row_digest(names, partition), 0, line, start
        placed = _placed_rows(file, layout, self._wanted.delimiter, names, start, line)
        for (_, stop, row), problem in self._checked(file, placed, partition):
            if problem is not None:
                self.bad.append(BadRow(file.name, row.line, problem, row.raw.decode("utf-8", "replace")))
                skipped.append(row.line)
            elif row.values is not None:
                # Of these rows alone, so that a part stays what it is when others are repaired or dropped.
                digest.update(row.raw)
                kept.append((row.line, row.values))
                characters += len(row.values[self._wanted.text_column])
            if len(kept) == self._wanted.part_rows or characters >= PART_CHARACTERS:
                add(file, kept)
                yield Part(
                    file, start, stop, first, len(kept), digest.hexdigest(), names, tuple(skipped), tuple(partition)
                )
                start, first = stop, row.line + max(1, row.raw.count(b"\n")) if layout != "array" else row.line + 1
                kept, skipped, characters, digest = [], [], 0, _row_digest(names, partition)
        if kept:
            add(file, kept)
            yield Part(file, start, stop, first, len(kept), digest.hexdigest(), names, tuple(skipped), tuple(partition))

    def _checked(
        self, file: Location, placed: Iterator[_Placed], partition: Sequence[tuple[str, Any]]
    ) -> Iterator[tuple[_Placed, str | None]]:
        """Find what is wrong with each row."""
        text_column, names = self._wanted.text_column, dict(partition)
        while batch := list(islice(placed, _CHECKED)):
            problems: list[str | None] = []
            for _, _, row in batch:
                problem = row.problem
                if row.values is not None:
                    problem = text_problem(row.values, text_column)
                    for name, value in names.items():
                        _check_partition(file, row.line, name, value, row.values.get(name, value))
                        row.values.pop(name, None)
                problems.append(problem)
            texts = {
                at: (row.values or {})[text_column]
                for at, (_, _, row) in enumerate(batch)
                if row.values is not None and problems[at] is None
            }
            if self._refusals is not None and texts:
                places = list(texts)
                for position, reason in self._refusals(list(texts.values())).items():
                    problems[places[position]] = reason
            self._report(len(texts))
            yield from zip(batch, problems, strict=True)

    def parquet(self, file: Location, partition: Sequence[tuple[str, Any]]) -> Iterator[Part]:
        """Cut a Parquet file into parts."""
        import pyarrow.compute as pc

        schema, texts = _parquet_texts(file, self._wanted.text_column)
        for field in schema:
            if field.name in dict(partition):
                _check_partition_column(file, field.name, dict(partition)[field.name])
            elif self.columns.takes(field.name):
                self.columns.add_type(field.name, field.type, file.name, file)
        digest = _digest(file)
        start = place = rows = characters = 0
        skipped: list[int] = []
        for column, problems in texts:
            problems = {**problems, **self._refused(column, problems)}
            self.bad += [BadRow(file.name, place + at + 1, reason) for at, reason in sorted(problems.items())]
            for at, length in enumerate(pc.fill_null(pc.binary_length(column), 0).to_pylist()):
                place += 1
                if at in problems:
                    skipped.append(place)
                else:
                    rows += 1
                    characters += length
                if rows == self._wanted.part_rows or characters >= PART_CHARACTERS:
                    yield _parquet_part(file, start, place, rows, digest, skipped, partition)
                    start, rows, characters, skipped = place, 0, 0, []
            self._report(len(column))
        if rows:
            yield _parquet_part(file, start, place, rows, digest, skipped, partition)

    def _refused(self, column: pa.ChunkedArray, problems: dict[int, str]) -> dict[int, str]:
        if self._refusals is None:
            return {}
        places = [at for at in range(len(column)) if at not in problems]
        found = self._refusals([column[at].as_py() for at in places])
        return {places[position]: reason for position, reason in found.items()}

    def documents(self, origin: Location, files: Sequence[Location]) -> Iterator[Part]:
        """Put files that are a text each into parts."""
        import pyarrow as pa

        text_column = self._wanted.text_column
        if text_column == PATH_COLUMN:
            raise ValueError(f"the column {PATH_COLUMN!r} is that of the files' names: give text_column another name")
        self.columns.takes(text_column)
        if self.columns.takes(PATH_COLUMN):
            self.columns.add_type(PATH_COLUMN, pa.string(), origin.name, origin)
        kept: list[Location] = []
        characters, digest = 0, hashlib.blake2b()
        for file in files:
            self._report(1)
            try:
                text = read_document(file)
            except ValueError as error:
                self.bad.append(BadRow(file.name, 1, str(error)))
                continue
            refused = self._refusals([text]) if self._refusals is not None else {}
            if refused:
                self.bad.append(BadRow(file.name, 1, refused[0]))
                continue
            digest.update(repr((document_name(origin, file), text)).encode("utf-8", "replace"))
            kept.append(file)
            characters += len(text)
            if len(kept) == self._wanted.part_rows or characters >= PART_CHARACTERS:
                yield _document_part(kept, digest.hexdigest(), origin)
                kept, characters, digest = [], 0, hashlib.blake2b()
        if kept:
            yield _document_part(kept, digest.hexdigest(), origin)


def _row_digest(names: Sequence[str], partition: Sequence[tuple[str, Any]]) -> hashlib.blake2b:
    return hashlib.blake2b(repr((names, tuple(partition))).encode("utf-8", "replace"))


def document_name(origin: Location, file: Location) -> str:
    """Name a document by its place in the source."""
    inside = file.path.removeprefix(origin.path).strip("/")
    return inside or file.path.rpartition("/")[2]


def _document_part(files: Sequence[Location], digest: str, origin: Location) -> Part:
    return Part(origin, 0, len(files), 1, len(files), digest, documents=tuple(files))


def _placed_rows(
    file: Location, layout: str, delimiter: str | None, names: Sequence[str], start: int, line: int
) -> Iterator[_Placed]:
    """Read the rows from a byte, or row, on."""
    if layout == "array":
        for place, row in enumerate(json_items(file)):
            if place >= start:
                yield _Placed(place, place + 1, row)
        return
    with lines_of(file, start) as lines:
        rows = csv_rows(lines, names, delimiter_of(file, delimiter), line) if names else json_rows(lines, line)
        for row in rows:
            yield _Placed(start, start + len(row.raw), row)
            start += len(row.raw)


def _check_text_column(file: Location, text_column: str, names: Sequence[str]) -> None:
    if text_column in names:
        return
    hint = "; is the delimiter another one (--delimiter)?" if len(names) == 1 and format_of(file) == "csv" else ""
    raise ValueError(f"{file.name!r} has no column {text_column!r}; it has {', '.join(map(repr, names))}{hint}")


def _partitions(
    origin: Location, files: Sequence[Location]
) -> tuple[dict[str, tuple[tuple[str, Any], ...]], dict[str, pa.DataType]]:
    """Read what the names of folders say of their files (lang=en), as pyarrow's Hive partitioning does."""
    import pyarrow as pa
    from pyarrow.dataset import HivePartitioning, get_partition_keys

    folders = {file.path: file.path.removeprefix(origin.path).strip("/").rpartition("/")[0] for file in files}
    pairs = [piece.partition("=") for folder in set(folders.values()) for piece in folder.split("/") if "=" in piece]
    given: dict[str, list[str]] = {}
    for name, _, value in pairs:
        given.setdefault(name, []).append(value)
    types = {name: pa.int32() if _are_int32(values) else pa.string() for name, values in sorted(given.items())}
    reader = HivePartitioning(pa.schema(list(types.items())))
    found = {}
    for path, folder in folders.items():
        keys = get_partition_keys(reader.parse(f"{folder}/")) if "=" in folder else {}
        own = {piece.partition("=")[0] for piece in folder.split("/") if "=" in piece}
        found[path] = tuple((name, keys.get(name)) for name in types if name in own)
    return found, types


def _are_int32(values: Sequence[str]) -> bool:
    # pyarrow's own rule; a missing value has a name of its own.
    numbers = [value for value in values if value != "__HIVE_DEFAULT_PARTITION__"]
    digits = all(value.removeprefix("-").isascii() and value.removeprefix("-").isdecimal() for value in numbers)
    return bool(numbers) and digits and all(-(2**31) <= int(value) < 2**31 for value in numbers)


def _check_partition(file: Location, line: int, name: str, value: Any, found: Any) -> None:
    if found != value and str(found) != str(value):
        raise ValueError(
            f"{file.name}:{line} has {name!r}: {found!r}, and its folder's name says {value!r}: rename one of them"
        )


def _check_partition_column(file: Location, name: str, value: Any) -> None:
    place = 0
    for batch in open_parquet(file).iter_batches(_BATCH_ROWS, columns=[name]):
        for found in batch.column(0).to_pylist():
            place += 1
            _check_partition(file, place, name, value, found)


def _check_casts(file: Location, schema: pa.Schema, partition: set[str]) -> None:
    """Check that a Parquet file's values are the same in the types of all files together."""
    import pyarrow as pa

    parquet = open_parquet(file)
    for field in parquet.schema_arrow:
        if field.name in partition or field.name not in schema.names or schema.field(field.name).type == field.type:
            continue
        kind, place = schema.field(field.name).type, 0
        if pa.types.is_dictionary(field.type) or str(kind) == "string":
            continue
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[field.name]):
            try:
                batch.column(0).cast(kind)
            except pa.ArrowException as error:
                at = next(at for at in range(len(batch)) if not _casts(batch.column(0).slice(at, 1), kind))
                raise ValueError(
                    f"{file.name}:{place + at + 1} has a {field.name!r} of {field.type} that {kind}, the type in other "
                    f"files, does not hold: {error}; columns (--columns) chooses which ones are kept"
                ) from error
            place += len(batch)


def _casts(values: pa.Array, kind: pa.DataType) -> bool:
    import pyarrow as pa

    try:
        values.cast(kind)
    except pa.ArrowException:
        return False
    return True


class Reader:
    """Reads parts as tables; quickest where one follows the other.

    Args:
        schema: of the tables.
        wanted: what is wanted of the source.
        origin: the source.
    """

    def __init__(self, schema: pa.Schema, wanted: Wanted, origin: Location) -> None:
        self._schema = schema
        self._wanted = wanted
        self._origin = origin
        self._parquet: _ParquetRows | None = None
        self._rows: Iterator[_Placed] = iter(())
        # Where they go on.
        self._at: tuple[Location, int] | None = None

    def read(self, part: Part) -> tuple[pa.Table, list[tuple[str, int]]]:
        """Read a part.

        Args:
            part: of the scan that the schema is from.

        Returns:
            Its rows that have a text, with all columns of the schema; and the file and line of each.

        Raises:
            ValueError: the file is no longer the one that was scanned.
        """
        if part.documents:
            table, places = self._read_documents(part)
        elif format_of(part.file) == "parquet":
            table, places = self._read_parquet(part)
        else:
            table, places = self._read_text(part)
        if table.num_rows != part.rows:
            raise ValueError(f"{part.file.name!r} has changed since this began: run it again")
        return table, places

    def _read_documents(self, part: Part) -> tuple[pa.Table, list[tuple[str, int]]]:
        import pyarrow as pa

        texts = pa.array([read_document(file) for file in part.documents], pa.string())
        names = pa.array([document_name(self._origin, file) for file in part.documents])
        columns = [texts if field.name == self._wanted.text_column else names for field in self._schema]
        return pa.table(columns, schema=self._schema), [(file.name, 1) for file in part.documents]

    def _read_text(self, part: Part) -> tuple[pa.Table, list[tuple[str, int]]]:
        import pyarrow as pa

        rows = self._rows_of(part)
        texts = self._wanted.text_column
        constant = dict(part.partition)
        columns = []
        for field in self._schema:
            convert = converter(field.type) if part.names and field.name != texts else filled
            if field.name in constant:
                values = [constant[field.name]] * len(rows)
            else:
                given = ((row.values or {}).get(field.name) for row in rows)
                values = [None if value is None else convert(value) for value in given]
            columns.append(pa.array(values, field.type))
        return pa.table(columns, schema=self._schema), [(part.file.name, row.line) for row in rows]

    def _rows_of(self, part: Part) -> list[Row]:
        layout = layout_of(part.file)
        # What is unpacked, or read whole, goes on where the part before ended; anything else is opened there anew.
        if self._at != (part.file, part.start) or (layout != "array" and not is_packed(part.file)):
            self._rows = _placed_rows(part.file, layout, self._wanted.delimiter, part.names, part.start, part.line)
        found, digest, skipped = [], _row_digest(part.names, part.partition), set(part.skipped)
        for _, stop, row in self._rows:
            if row.values is not None and row.line not in skipped:
                digest.update(row.raw)
                found.append(row)
            if stop >= part.stop:
                break
        self._at = part.file, part.stop
        if digest.hexdigest() != part.digest:
            raise ValueError(f"{part.file.name!r} has changed since this began: run it again")
        return found

    def _read_parquet(self, part: Part) -> tuple[pa.Table, list[tuple[str, int]]]:
        import pyarrow as pa

        if self._parquet is None or self._parquet.file != part.file or self._parquet.place > part.start:
            self._parquet = _ParquetRows(part.file, part.start)
        table = self._parquet.take(part.start, part.stop)
        places = [(part.file.name, place + 1) for place in range(part.start, part.stop)]
        if part.skipped:
            skipped = set(part.skipped)
            kept = [number not in skipped for _, number in places]
            table = table.filter(pa.array(kept[: table.num_rows], pa.bool_()))
            places = [place for place, keep in zip(places, kept, strict=True) if keep]
        constant = dict(part.partition)
        columns = []
        for field in self._schema:
            if field.name in constant:
                columns.append(pa.array([constant[field.name]] * table.num_rows, field.type))
            elif field.name in table.column_names:
                columns.append(table.column(field.name).cast(field.type))
            else:
                columns.append(pa.nulls(table.num_rows, field.type))
        return pa.table(columns, schema=self._schema), places


def _parquet_texts(
    file: Location, text_column: str
) -> tuple[pa.Schema, Iterator[tuple[pa.ChunkedArray, dict[int, str]]]]:
    # A file's columns, and batches of its texts with what is wrong by place.
    import pyarrow as pa

    parquet = open_parquet(file)
    schema = parquet.schema_arrow
    _check_text_column(file, text_column, schema.names)
    check_names(file, schema.names)
    kind = schema.field(text_column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if str(value_kind) not in ("string", "large_string", "string_view"):
        raise ValueError(f"{file.name!r} has {kind} in the column {text_column!r}, not text")
    batches = parquet.iter_batches(_BATCH_ROWS, columns=[text_column])
    columns = (pa.chunked_array([batch.column(0)]).cast(pa.large_string()) for batch in batches)
    return schema, ((column, _bad_texts(column)) for column in columns)


def _parquet_part(
    file: Location,
    start: int,
    stop: int,
    rows: int,
    digest: str,
    skipped: Sequence[int],
    partition: Iterable[tuple[str, Any]],
) -> Part:
    identity = f"{digest} {start} {stop} {list(skipped)} {tuple(partition)}"
    own = hashlib.blake2b(identity.encode("utf-8", "replace")).hexdigest()
    return Part(file, start, stop, start + 1, rows, own, (), tuple(skipped), tuple(partition))


def _digest(file: Location) -> str:
    digest = hashlib.blake2b()
    with file.system.open_input_stream(file.path, compression=None) as stream:
        while piece := stream.read(PIECE):
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
        parquet = open_parquet(file)
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
