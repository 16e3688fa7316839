"""The columns of a source: one type each, settled before anything is embedded, in which no value becomes another."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from qwen3_embed_integrations.bulk.rows import Location

logger = logging.getLogger(__name__)

# Up to here, float64 has every whole number.
_EXACT = 2**53
_INT64 = 2**63

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WAY_OUT = "columns (--columns) chooses which ones are kept"


class Columns:
    """Finds one type for each column of all files.

    JSON values have the types that Arrow infers. The fields of a CSV column are numbers, or true and false, where every
    one that is not empty is written exactly as JSON writes such a value, in all CSV files, and no JSON or Parquet file
    has text there; an empty one is null then. Else they are text as they stand ("007", "1.50").

    Args:
        text_column: the column to embed, which is text.
        chosen: the others to keep; None for all.
    """

    def __init__(self, text_column: str, chosen: Sequence[str] | None) -> None:
        self._text_column = text_column
        self._chosen = chosen
        self._seen: dict[str, None] = {}
        self._types: dict[str, pa.DataType] = {}
        self._places: dict[str, str] = {}
        self._fields: dict[str, _Fields] = {}
        self._largest: dict[str, tuple[int, str]] = {}
        self._mixed: dict[str, str] = {}

    def takes(self, name: str) -> bool:
        """Return whether a column is one whose type is asked for."""
        self._seen[name] = None
        return name != self._text_column and (self._chosen is None or name in self._chosen)

    def add_type(self, name: str, kind: pa.DataType, place: str, file: Location) -> None:
        """Take a column's type from a file's schema, or from some of its rows.

        Args:
            name: of the column.
            kind: its type there.
            place: where that is.
            file: the file.

        Raises:
            ValueError: it was of another type before, and no type holds the values of both.
        """
        import pyarrow as pa

        before = self._types.setdefault(name, kind)
        first = self._places.setdefault(name, place)
        if before == kind:
            return
        try:
            self._types[name] = _unified(before, kind)
        except pa.ArrowException as error:
            raise ValueError(
                f"{file.name!r} has a column of another type than before: {name!r} is {kind} at {place}, and {before} "
                f"at {first}; {_WAY_OUT}"
            ) from error
        if pa.types.is_floating(self._types[name]) and (pa.types.is_integer(kind) or pa.types.is_integer(before)):
            self._mixed.setdefault(name, place)
        if pa.types.is_null(before):
            self._places[name] = place

    def add_json(self, file: Location, rows: Sequence[tuple[int, dict[str, Any]]]) -> None:
        """Take the types of some rows' values.

        Args:
            file: where they are.
            rows: line and values of each.

        Raises:
            ValueError: a column has values of two types.
        """
        import pyarrow as pa

        for name in dict.fromkeys(name for _, values in rows for name in values):
            if not self.takes(name):
                continue
            given = [(line, filled(values[name])) for line, values in rows if name in values]
            numbers = [abs(value) for _, value in given if type(value) is int]
            try:
                # More than the type: numbers too large for it are found here.
                kind = pa.array([value for _, value in given]).type
            except (pa.ArrowException, OverflowError) as error:
                line = _odd_one(given)
                raise ValueError(
                    f"column {name!r} has no one type in {file.name}:{line}: {error}; {_WAY_OUT}"
                ) from error
            line = next((line for line, value in given if value is not None), given[0][0])
            if numbers and max(numbers) > self._largest.get(name, (0, ""))[0]:
                self._largest[name] = max(numbers), f"{file.name}:{line}"
            if numbers and pa.types.is_floating(kind):
                self._mixed.setdefault(name, f"{file.name}:{line}")
            self.add_type(name, kind, f"{file.name}:{line}", file)

    def add_csv(self, file: Location, rows: Sequence[tuple[int, dict[str, str]]]) -> None:
        """Take the fields of some rows of CSV.

        Args:
            file: where they are.
            rows: line and fields of each.
        """
        for name in rows[0][1] if rows else ():
            if self.takes(name):
                fields = self._fields.setdefault(name, _Fields())
                for line, values in rows:
                    fields.add(values[name], file, line)

    def schema(self) -> pa.Schema:
        """Settle the types.

        Returns:
            All columns, in the order in which they were met.

        Raises:
            ValueError: a column has values of two types, or numbers that no type holds beside the others; or one that
                was chosen is not there.
        """
        import pyarrow as pa

        missing = [name for name in self._chosen or () if name not in self._seen]
        if missing:
            known = ", ".join(map(repr, self._seen))
            raise ValueError(f"there is no column {', '.join(map(repr, missing))}; there are {known}")
        settled = [
            pa.field(name, pa.string() if name == self._text_column else self._settled(name))
            for name in self._seen
            if name == self._text_column or name in self._types or name in self._fields
        ]
        for name, place in self._mixed.items():
            if name in self._types and pa.types.is_floating(self._types[name]):
                logger.warning("column %r has whole numbers and fractions (%s), and is float64", name, place)
        return pa.schema(settled)

    def _settled(self, name: str) -> pa.DataType:
        import pyarrow as pa

        kind, fields = self._types.get(name), self._fields.get(name)
        if fields is not None and (kind is None or not _is_text(kind)):
            self._add_fields(name, fields, kind)
            kind = self._types[name]
        assert kind is not None
        largest, place = self._largest.get(name, (0, ""))
        if pa.types.is_floating(kind) and largest > _EXACT:
            raise ValueError(
                f"column {name!r} has fractions ({self._mixed.get(name, 'elsewhere')}) and, at {place}, a whole number "
                f"that float64 does not hold exactly: {largest}; {_WAY_OUT}"
            )
        return kind

    def _add_fields(self, name: str, fields: _Fields, kind: pa.DataType | None) -> None:
        import pyarrow as pa

        own = fields.type()
        if own is None:
            own = kind if kind is not None else pa.string()
        if kind is not None and not pa.types.is_null(kind) and _is_text(own):
            raise ValueError(
                f"column {name!r} is {kind} at {self._places[name]} and text at {fields.place}; {_WAY_OUT}"
            )
        if fields.largest > self._largest.get(name, (0, ""))[0]:
            self._largest[name] = fields.largest, fields.place
        if fields.kind is float and fields.largest:
            self._mixed.setdefault(name, fields.place)
        try:
            self._types[name] = own if kind is None else _unified(kind, own)
        except pa.ArrowException as error:
            raise ValueError(
                f"column {name!r} is {kind} at {self._places[name]} and {own} at {fields.place}; {_WAY_OUT}"
            ) from error


class _Fields:
    """What the fields of one CSV column are so far.

    Attributes:
        kind: int, float, bool or str; None while all are empty.
        place: of the first field that is not empty, or of the one that made them text.
        largest: absolute value of the whole numbers.
    """

    def __init__(self) -> None:
        self.kind: type | None = None
        self.place = ""
        self.largest = 0

    def add(self, field: str, file: Location, line: int) -> None:
        if not field or self.kind is str:
            return
        value = scalar(field)
        kind = type(value)
        if kind is int:
            self.largest = max(self.largest, abs(value))
        together = {self.kind, kind}
        if self.kind is None or together == {int, float}:
            self.kind, self.place = (kind, f"{file.name}:{line}") if self.kind is None else (float, self.place)
        elif len(together) > 1:
            self.kind, self.place = str, f"{file.name}:{line}"

    def type(self) -> pa.DataType | None:
        import pyarrow as pa

        if self.kind is float and self.largest > _EXACT:
            return pa.string()
        types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
        return None if self.kind is None else types[self.kind]


def scalar(field: str) -> Any:
    """Read a field of CSV as JSON would, where it is written exactly as JSON writes the value; else it is itself."""
    if field in ("true", "false"):
        return field == "true"
    if not _NUMBER.fullmatch(field):
        return field
    value = json.loads(field)
    if json.dumps(value) != field or (type(value) is int and not -_INT64 <= value < _INT64):
        return field
    return value


def converter(kind: pa.DataType) -> Callable[[str], Any]:
    """Return what makes values of a column's type from the fields of CSV."""
    if _is_text(kind):
        return str
    return lambda field: scalar(field) if field else None


def filled(value: Any) -> Any:
    """Put null for objects without entries, at any depth, which Parquet can't keep."""
    if isinstance(value, dict):
        return {name: filled(item) for name, item in value.items()} or None
    if isinstance(value, list):
        return [filled(item) for item in value]
    return value


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    pair = [pa.schema([("column", kind)]) for kind in (one, other)]
    return pa.unify_schemas(pair, promote_options="permissive").field(0).type


def _odd_one(given: Sequence[tuple[int, Any]]) -> int:
    """Find the line of the first value that does not go with the first."""
    import pyarrow as pa

    first = next(value for _, value in given if value is not None)
    for line, value in given:
        try:
            pa.array([first, value])
        except (pa.ArrowException, OverflowError):
            return line
    return given[0][0]
