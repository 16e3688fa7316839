"""Rows of files in the formats that people keep texts in, with their lines: what `embed`, `cost` and `eval` read."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pyarrow.fs import FileSystem

FORMATS = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""Files with a row a text, by the ends of their names; all but Parquet may be packed, with `PACKED` behind."""

PACKED = {".gz": "gzip", ".zst": "zstd"}

ENDS = f"{', '.join(FORMATS)}, all but .parquet perhaps with .gz or .zst behind"
"""The ends of names, for messages."""

DOCUMENTS = (".txt", ".md", ".html", ".htm")
"""Files that are a text each."""

PIECE = 2**20
_LONGEST_FIELD = 2**31 - 1
# Of a quote that nobody closed, a file's whole rest would be one row.
_LONGEST_ROW = 2**26
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


class Row(NamedTuple):
    """A row, or a blank line, which has neither values nor a problem.

    Attributes:
        line: of the file, from 1: the row's first; of a Parquet file or a JSON array, the number of the row.
        values: by column.
        problem: why it has none.
        raw: the row as it stands in the file; of Parquet, nothing.
    """

    line: int
    values: dict[str, Any] | None = None
    problem: str | None = None
    raw: bytes = b""


def require_pyarrow() -> None:
    """Check that files can be read and written.

    Raises:
        ImportError: pyarrow is not installed.
    """
    if find_module("pyarrow") is None:
        raise ImportError("reading and writing files needs pyarrow: pip install 'qwen3-embed-integrations[bulk]'")


def format_of(file: Location | Path) -> str | None:
    """Return what a file's name says that it holds: "parquet", "jsonl", "json" or "csv"; None for anything else."""
    path = Path(file.path if isinstance(file, Location) else file)
    packed = path.suffix.lower() in PACKED
    found = FORMATS.get(Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    return None if packed and found == "parquet" else found


def is_packed(file: Location) -> bool:
    """Return whether a file has to be unpacked, by its name."""
    return Path(file.path).suffix.lower() in PACKED


def is_document(file: Location | Path) -> bool:
    """Return whether a file is one text, by its name."""
    return Path(file.path if isinstance(file, Location) else file).suffix.lower() in DOCUMENTS


def read_rows(file: Location, *, delimiter: str | None = None) -> Iterator[Row]:
    """Read the rows of a file: Parquet, JSON lines, JSON, CSV or TSV, by the end of its name, packed or not.

    A JSON file is an array of objects, which is read whole, or JSON lines. CSV and TSV have a heading.

    Args:
        file: what to read.
        delimiter: between the fields of CSV; None for a comma, or a tab in a file named .tsv.

    Yields:
        The rows in order, also those that can't be read.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not what its name says; the message has its name.
    """
    kind = layout_of(file)
    if kind == "parquet":
        number = 0
        for batch in open_parquet(file).iter_batches(1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(number, values)
    elif kind == "array":
        yield from json_items(file)
    elif kind == "jsonl":
        with lines_of(file) as lines:
            yield from json_rows(lines)
    else:
        start, line, names = heading_of(file, delimiter)
        with lines_of(file, start) as lines:
            yield from csv_rows(lines, names, delimiter_of(file, delimiter), line)


def layout_of(file: Location) -> str:
    """Find how a file's rows are laid out.

    Args:
        file: what to read.

    Returns:
        "parquet", "jsonl", "csv", or "array" for a JSON file that begins like one.

    Raises:
        OSError: the file can't be read.
        ValueError: its name has none of the ends.
    """
    kind = format_of(file)
    if kind is None:
        raise ValueError(f"{file.name!r} must end in one of {ENDS}")
    if kind != "json":
        return kind
    with lines_of(file) as lines:
        for line in lines:
            if begun := line.removeprefix(codecs.BOM_UTF8).lstrip():
                return "array" if begun.startswith(b"[") else "jsonl"
    return "jsonl"


@contextmanager
def lines_of(file: Location, start: int = 0, stop: int | None = None) -> Iterator[Iterator[bytes]]:
    """Open the lines between two bytes, which are counted in what is unpacked.

    Args:
        file: what to read.
        start: the first byte.
        stop: the byte to end before; None for the end.

    Yields:
        The lines, with their ends.

    Raises:
        OSError: the file can't be read.
        ValueError: it can't be unpacked.
    """
    import pyarrow as pa

    packed = PACKED.get(Path(file.path).suffix.lower())
    if packed and not file.system.get_file_info([file.path])[0].size:
        raise ValueError(f"{file.name!r} cannot be unpacked: it is empty: fetch it again")
    raw = (
        file.system.open_input_stream(file.path, compression=None) if packed else file.system.open_input_file(file.path)
    )
    with io.BufferedReader(pa.CompressedInputStream(raw, packed) if packed else raw, PIECE) as stream:

        def lines() -> Iterator[bytes]:
            place = start
            with _unpacking(file):
                if not packed:
                    stream.seek(start)
                else:
                    _skip(stream, start)
                while (stop is None or place < stop) and (line := stream.readline()):
                    place += len(line)
                    yield line

        yield lines()


@contextmanager
def _unpacking(file: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None or Path(file.path).suffix.lower() not in PACKED:
            raise
        raise ValueError(f"{file.name!r} cannot be unpacked: {error}: fetch it again") from error


def _skip(stream: io.BufferedReader, size: int) -> None:
    while size and (piece := stream.read(min(PIECE, size))):
        size -= len(piece)


def json_rows(lines: Iterable[bytes], line: int = 1) -> Iterator[Row]:
    """Read JSON lines.

    Args:
        lines: with their ends.
        line: number of the first.

    Yields:
        A row a line.
    """
    for number, raw in enumerate(lines, start=line):
        if not raw.strip():
            yield Row(number, raw=raw)
            continue
        try:
            values = json.loads(raw.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
            if b"\\ud" in raw.lower():
                values = _without_surrogates(values)
        except (ValueError, RecursionError) as error:
            yield Row(number, problem=f"is not JSON in UTF-8: {error}", raw=raw)
            continue
        if isinstance(values, dict):
            yield Row(number, values, raw=raw)
        else:
            yield Row(number, problem="is not a JSON object", raw=raw)


def json_items(file: Location) -> Iterator[Row]:
    """Read a JSON array whole.

    Args:
        file: what to read.

    Yields:
        A row an item.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no JSON.
    """
    with lines_of(file) as lines:
        content = b"".join(lines)
    try:
        items = json.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name!r} is not JSON in UTF-8: {error}") from error
    for number, item in enumerate(_without_surrogates(items) if b"\\ud" in content.lower() else items, start=1):
        raw = json.dumps(item).encode()
        if isinstance(item, dict):
            yield Row(number, item, raw=raw)
        else:
            yield Row(number, problem="is not a JSON object", raw=raw)


def _without_surrogates(values: Any) -> Any:
    # Lone ones have no UTF-8 form, which Arrow keeps; the encoder reads them as U+FFFD too.
    return json.loads(_SURROGATES.sub("\ufffd", json.dumps(values, ensure_ascii=False)))


def delimiter_of(file: Location, delimiter: str | None) -> str:
    """Return what stands between the fields of a CSV file."""
    return checked_delimiter(delimiter) or ("\t" if ".tsv" in Path(file.path).suffixes else ",")


def checked_delimiter(delimiter: str | None) -> str | None:
    r"""Check a delimiter, of which "\t" is the spelling of a tab on a command line.

    Args:
        delimiter: what a caller gave.

    Returns:
        One character, or None.

    Raises:
        ValueError: it is not one character, or one that CSV uses otherwise.
    """
    delimiter = "\t" if delimiter == "\\t" else delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"delimiter must be one character, neither a quote nor a line's end, got {delimiter!r}")
    return delimiter


def heading_of(file: Location, delimiter: str | None) -> tuple[int, int, tuple[str, ...]]:
    """Read the heading of a CSV file.

    Args:
        file: what to read.
        delimiter: as for `read_rows`.

    Returns:
        The byte and the line that its rows begin at, and its columns.

    Raises:
        OSError: the file can't be read.
        ValueError: it has no heading, or two columns of one name.
    """
    with lines_of(file) as lines:
        row = next(csv_rows(lines, (), delimiter_of(file, delimiter)), None)
    if row is None or row.values is None:
        raise ValueError(f"{file.name}:1 must be a heading with the names of the columns")
    names = tuple(row.values.values())
    check_names(file, names)
    return len(row.raw), 1 + row.raw.count(b"\n"), names


def check_names(file: Location, names: Sequence[str]) -> None:
    """Check that no two columns of a file have one name.

    Args:
        file: for the message.
        names: of its columns.

    Raises:
        ValueError: there are two.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"{file.name!r} has two columns of one name: {', '.join(map(repr, names))}")


def csv_rows(lines: Iterable[bytes], names: Sequence[str], delimiter: str, line: int = 1) -> Iterator[Row]:
    """Read CSV; of what is no row, such as a quote that nobody closes, only the first line is lost.

    Args:
        lines: with their ends.
        names: of the columns; none for the heading itself, whose values have their numbers as names.
        delimiter: between fields.
        line: number of the first.

    Yields:
        A row a record.
    """
    source = _Lines(lines)
    taken: list[bytes] = []
    reader = csv.reader(_decoded(source, taken, not names), strict=True, delimiter=delimiter)
    read_again = 0
    while True:
        fields, problem = _next_fields(reader)
        if not taken:
            return
        if problem is not None:
            source.put_back(taken[1:])
            read_again = max(read_again, len(taken))
            del taken[1:]
            reader = csv.reader(_decoded(source, taken, not names), strict=True, delimiter=delimiter)
        raw = b"".join(taken)
        if problem is None and fields:
            problem = _problem_of(fields, names, raw, again=read_again > 0)
        values = (
            dict(zip(names or map(str, range(len(fields))), fields, strict=True)) if fields and not problem else None
        )
        yield Row(line, values, problem, raw)
        line += len(taken)
        read_again -= len(taken)
        taken.clear()


def _problem_of(fields: Sequence[str], names: Sequence[str], raw: bytes, *, again: bool) -> str | None:
    if names and len(fields) != len(names):
        return f"has {len(fields)} fields, the heading {len(names)}"
    if any(_SURROGATES.search(field) for field in fields):
        return "is not UTF-8"
    # The rest of a broken record can look like a row.
    return "is not CSV: it has a quote too many" if again and raw.count(b'"') % 2 else None


class _Lines:
    """Lines of which some can be read again."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._back: deque[bytes] = deque()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._back.popleft() if self._back else next(self._lines)

    def put_back(self, lines: Sequence[bytes]) -> None:
        self._back.extendleft(reversed(lines))


def _decoded(source: _Lines, taken: list[bytes], first: bool) -> Iterator[str]:
    """Decode lines as they are asked for, and keep those of the record that is being read."""
    size = 0
    for raw in source:
        size = len(raw) + (size if taken else 0)
        taken.append(raw)
        if size > _LONGEST_ROW:
            return
        yield (raw.removeprefix(codecs.BOM_UTF8) if first else raw).decode("utf-8", "surrogateescape")


def _next_fields(reader: Any) -> tuple[list[str] | None, str | None]:
    # The csv module's own limit, less than a document of 32,768 tokens, holds for the whole process.
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return next(reader, None), None
    except csv.Error as error:
        return None, f"is not CSV: {error}"
    finally:
        csv.field_size_limit(limit)


def open_parquet(file: Location) -> Any:
    """Open a Parquet file.

    Args:
        file: what to read.

    Returns:
        A `pyarrow.parquet.ParquetFile`.

    Raises:
        OSError: the file can't be read.
        ValueError: it is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without reading ahead, so that memory does not grow with a file's row groups.
        return pq.ParquetFile(file.system.open_input_file(file.path), pre_buffer=False, buffer_size=PIECE)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{file.name!r} is not a Parquet file: {error}") from error


def read_document(file: Location) -> str:
    """Read a file that is one text; of HTML, what a reader sees of it.

    Args:
        file: what to read.

    Returns:
        The text.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not in UTF-8; the message is to follow the file's name.
    """
    with lines_of(file) as lines:
        content = b"".join(lines)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not in UTF-8: {error}") from error
    return visible_text(text) if is_html(file) else text


def is_html(file: Location | Path) -> bool:
    """Return whether a file is a page, by its name."""
    return Path(file.path if isinstance(file, Location) else file).suffix.lower() in (".html", ".htm")


def visible_text(page: str) -> str:
    """Read what a reader sees of an HTML page.

    Args:
        page: HTML.

    Returns:
        A line a block, white space as a browser shows it; nothing of scripts, styles and the head.
    """
    parser = _Page()
    parser.feed(page)
    parser.close()
    return parser.text()


class _Page(HTMLParser):
    """Collects what a reader sees of a page: a line a block, white space as a browser shows it."""

    _HIDDEN = ("head", "title", "script", "style", "template", "noscript")
    _INLINE = re.compile(
        "a|abbr|b|bd[io]|cite|code|data|dfn|em|i|kbd|mark|q|s|samp|small|span|strong|su[bp]|time|u|var"
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._blocks: list[str] = []
        self._block = ""
        self._hidden: list[str] = []
        self._kept_as_is = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_block(tag)
        self._kept_as_is += tag == "pre"
        if tag == "body":
            self._hidden.clear()  # a head that nobody closed
        elif tag in self._HIDDEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._end_block(tag)
        self._kept_as_is -= tag == "pre" and self._kept_as_is > 0
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._block += data

    def text(self) -> str:
        self._end_block("html")
        return "\n".join(self._blocks)

    def _end_block(self, tag: str) -> None:
        if self._INLINE.fullmatch(tag):
            return
        block = self._block.strip("\n") if self._kept_as_is else " ".join(self._block.split())
        if block.strip():
            self._blocks.append(block)
        self._block = ""
