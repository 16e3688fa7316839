"""Documents' metadata: plain values that JSON holds, and the filters that LangChain's stores share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timezone
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 80
# Python writes and reads no integers of more than 4,300 digits.
_INTEGER_BITS = 14_000


def plain(value: Any, path: str) -> Any:
    """Turn a value of a document's metadata into one that JSON gives back as it was; nothing is shared with the old.

    Args:
        value: a string, number, bool or None; a list or tuple, which becomes a list, or a dictionary of such; a date or
            time, which becomes ISO 8601, in UTC if it has a zone; a UUID or path, which becomes a string; an enum, of
            which its value is taken; numpy's numbers, times and arrays, which become numbers, ISO 8601 and lists.
        path: where it stands, for the message.

    Returns:
        The plain value.

    Raises:
        TypeError: it is of another type, or a dictionary's key is not a string.
    """
    if isinstance(value, Enum):
        return plain(value.value, path)
    if isinstance(value, (np.generic, np.ndarray)):
        value = _of_numpy(value)
    if value is None or type(value) in (str, float, bool):
        return value
    if isinstance(value, int) and value.bit_length() > _INTEGER_BITS:
        raise TypeError(f"{path} is an integer of {value.bit_length():,} bits, which can't be saved: give a string")
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{path}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r:.{_SHOWN}} ({type(key).__name__}): keys must be strings")
        # Not str(), which makes the name of a key that is an enum too.
        return {"".join(key): plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    if isinstance(value, datetime) and value.utcoffset() is not None:
        # In one zone, since times are compared as strings.
        value = value.astimezone(timezone.utc)
    if isinstance(value, (date, time)):
        # pandas' missing time is a datetime, but equals nothing.
        return value.isoformat() if value == value else None
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    raise TypeError(
        f"{path} is {value!r:.{_SHOWN}} ({type(value).__name__}), which can't be saved: give a string, number, bool, "
        "None, date, UUID, or a list or dictionary of them"
    )


def _of_numpy(value: Any) -> Any:
    """Turn what numpy holds into Python's own values, as far as there are such."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "mM":
            return value.tolist()
        return [*value] if value.ndim else _of_numpy(value[()])
    if isinstance(value, np.timedelta64):
        return value
    if isinstance(value, np.datetime64):
        return _of_moment(value)
    return value.item()


def _of_moment(value: np.datetime64) -> Any:
    if np.isnat(value):
        return None
    if not isinstance(value.item(), int):
        return value.item()
    # What Python's times are too coarse or too short for, as numpy judges by the unit, is an integer.
    coarse = value.astype("datetime64[us]")
    return coarse.item() if coarse == value and not isinstance(coarse.item(), int) else str(value)


Condition = Callable[["Columns"], "NDArray[np.bool_]"]
_Test = Callable[["_Column"], "NDArray[np.bool_]"]

_MISSING: Any = object()


class _Column:
    """A field of all rows: its distinct values, and which of them each row has."""

    def __init__(self) -> None:
        # Place 0 is for rows that lack the field.
        self.values: list[Any] = [_MISSING]
        self.codes: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._code_of: dict[Any, int] = {}

    def extend(self, values: list[Any]) -> None:
        codes = np.fromiter(map(self._code, values), dtype=np.int32, count=len(values))
        self.codes = np.concatenate([self.codes, codes])

    def _code(self, value: Any) -> int:
        if value is _MISSING:
            return 0
        code = self._code_of.setdefault(_key(value), len(self.values))
        if code == len(self.values):
            self.values.append(value)
        return code

    def one_of(self, wanted: Collection[Any]) -> NDArray[np.bool_]:
        """Find the rows that have one of some values."""
        codes = [self._code_of[_key(value)] for value in wanted if value == value and _key(value) in self._code_of]
        if len(codes) == 1:
            return np.asarray(self.codes == codes[0])
        return self._rows_of(np.isin(np.arange(len(self.values)), codes))

    def where(self, test: Callable[[Any], bool]) -> NDArray[np.bool_]:
        """Find the rows whose value passes a test, which each distinct value takes once."""
        return self._rows_of(np.array([value is not _MISSING and test(value) for value in self.values]))

    def _rows_of(self, fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = fits[self.codes]
        return found


def _key(value: Any) -> Any:
    """Make what is equal for equal values, and can be looked up."""
    if isinstance(value, list):
        return (list, *map(_key, value))
    if isinstance(value, dict):
        return (dict, frozenset((name, _key(item)) for name, item in value.items()))
    return value


class Columns:
    """The metadata of a store's rows by field; a field's column is made when a filter first names it."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any] | None] = []
        self._columns: dict[str, _Column] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: int, metadata: Mapping[str, Any]) -> None:
        """Add a row; those before it that were not added have no metadata.

        Args:
            row: its place, beyond all others.
            metadata: plain values.
        """
        self._rows += [None] * (row - len(self._rows))
        self._rows.append(metadata)

    def column(self, name: str) -> _Column:
        """Look a field up.

        Args:
            name: of the field.

        Returns:
            Its column, of all rows.
        """
        column = self._columns.setdefault(name, _Column())
        new = self._rows[len(column.codes) :]
        if new:
            column.extend([_MISSING if metadata is None else metadata.get(name, _MISSING) for metadata in new])
        if len(column.values) == 1:
            # No row has it: names from requests must not fill the memory.
            del self._columns[name]
        return column

    def everything(self) -> NDArray[np.bool_]:
        """Return all rows."""
        return np.ones(len(self), dtype=np.bool_)


def compiled(filter: Any, path: str = "filter") -> Condition:
    """Check a filter, and make the function that finds its rows.

    A field with a value must have it; with a list, one of the list's; with a dictionary of operators, each must hold:
    $eq, $ne, $in, $nin, $not, and $gt, $gte, $lt and $lte among numbers or among strings, as which times are compared.
    True equals 1, as in Python. A row without the field
    passes $ne, $nin and $not, and nothing else. $and and $or join lists of filters, and $not turns one round.

    Args:
        filter: the filter.
        path: where it stands, for the messages.

    Returns:
        From columns to which rows pass, shape (rows,).

    Raises:
        TypeError: a part of it has the wrong type.
        ValueError: an operator is unknown.
    """
    if not isinstance(filter, Mapping):
        raise TypeError(
            f"{path} must be a function or a dictionary, got {filter!r:.{_SHOWN}} ({type(filter).__name__})"
        )
    parts = [_part(name, wanted, f"{path}[{name!r}]") for name, wanted in filter.items()]
    return lambda columns: np.logical_and.reduce([part(columns) for part in parts] or [columns.everything()])


def _part(name: Any, wanted: Any, path: str) -> Condition:
    if name in ("$and", "$or"):
        if not isinstance(wanted, (list, tuple)) or not wanted:
            raise TypeError(f"{path} must be a list of one filter or more, got {wanted!r:.{_SHOWN}}")
        parts = [compiled(one, f"{path}[{place}]") for place, one in enumerate(wanted)]
        joined = np.logical_and if name == "$and" else np.logical_or
        return lambda columns: joined.reduce([part(columns) for part in parts])
    if name == "$not":
        inner = compiled(wanted, path)
        return lambda columns: ~inner(columns)
    if not isinstance(name, str):
        raise TypeError(f"{path}: a field's name must be a string, got {name!r:.{_SHOWN}}")
    if name.startswith("$"):
        raise ValueError(f"{path}: there is no operator {name!r} here, only $and, $or and $not")
    test = _test(wanted, path)
    return lambda columns: test(columns.column(name))


def _test(wanted: Any, path: str) -> _Test:
    operators = [name for name in wanted if str(name).startswith("$")] if isinstance(wanted, Mapping) else []
    if isinstance(wanted, np.ndarray):
        wanted = wanted.tolist()
    if not operators:
        if isinstance(wanted, (list, tuple, set, frozenset)):
            return _operator("$in", wanted, path)
        return _operator("$eq", wanted, path)
    if len(operators) < len(wanted):
        raise ValueError(f"{path} has operators and other names: {', '.join(map(repr, wanted))}")
    tests = [_operator(name, value, f"{path}[{name!r}]") for name, value in wanted.items()]
    return lambda column: np.logical_and.reduce([test(column) for test in tests])


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda value, bound: value > bound,
    "$gte": lambda value, bound: value >= bound,
    "$lt": lambda value, bound: value < bound,
    "$lte": lambda value, bound: value <= bound,
}


def _operator(name: str, wanted: Any, path: str) -> _Test:
    if name in ("$in", "$nin"):
        wanted = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
        if not isinstance(wanted, (list, tuple, set, frozenset)):
            raise TypeError(f"{path} must be a list, got {wanted!r:.{_SHOWN}} ({type(wanted).__name__})")
        values = [plain(value, path) for value in wanted]
        return _negated(lambda column: column.one_of(values), name == "$nin")
    if name == "$not":
        return _negated(_test(wanted, path), True)
    if name in ("$eq", "$ne"):
        value = plain(wanted, path)
        return _negated(lambda column: column.one_of([value]), name == "$ne")
    if name in _COMPARISONS:
        return _comparison(_COMPARISONS[name], plain(wanted, path), path)
    known = ("$eq", "$ne", *_COMPARISONS, "$in", "$nin", "$not")
    raise ValueError(
        f"{path}: there is no operator {name!r} here, only {', '.join(known)}; and $and, $or around fields"
    )


def _negated(test: _Test, negate: bool) -> _Test:
    return (lambda column: ~test(column)) if negate else test


def _comparison(compare: Callable[[Any, Any], bool], bound: Any, path: str) -> _Test:
    kinds: Any = str if isinstance(bound, str) else (int, float)
    if not isinstance(bound, kinds):
        raise TypeError(f"{path} must be a number or a string, got {bound!r:.{_SHOWN}} ({type(bound).__name__})")
    return lambda column: column.where(lambda value: isinstance(value, kinds) and compare(value, bound))
