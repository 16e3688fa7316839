"""Embedding a source part by part, each written at once to a file that its content and the settings name.

A part whose file is there is done, wherever its rows lie now. What was written of other parts, such as those behind a
row that was deleted, is kept until the end, and its vectors are taken for equal texts, which are not embedded again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from tqdm import tqdm

from qwen3_embed_integrations.bulk.rows import Location, checked_delimiter, require_pyarrow
from qwen3_embed_integrations.bulk.source import BadRow, Part, Reader, Wanted, find_files, scan
from qwen3_embed_integrations.encoder import Qwen3Encoder
from qwen3_embed_integrations.endpoint import EndpointError
from qwen3_embed_integrations.matryoshka import as_integer
from qwen3_embed_integrations.usage import record_usage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence, Set

    import pyarrow as pa
    from numpy.typing import NDArray

    from qwen3_embed_integrations.bulk.source import Refusals
    from qwen3_embed_integrations.remote import RemoteEncoder

logger = logging.getLogger(__name__)

PART_ROWS = 4096
REJECTED = "_rejected.jsonl"
METADATA_KEY = b"qwen3_embed_integrations"

_NAME = re.compile(r"part-\d{6,}-[0-9a-f]{16}\.parquet")
_SHOWN = 5
# A source in another place is the same one where at least so many of the texts are found again.
_SAME_SOURCE = 0.5
# Rows between two steps of a progress bar; fewer make groups of less equal lengths, and embedding slower.
_STEP_ROWS = 512


@dataclass(frozen=True)
class Task:
    """A part to embed.

    Attributes:
        part: the rows.
        name: of the file to write.
        key: names the rows and the settings.
    """

    part: Part
    name: str
    key: str


@dataclass(frozen=True)
class Done:
    """What embedding one part took.

    Attributes:
        rows: how many were embedded.
        reused: how many got the vector that an earlier run had computed for their text.
        tokens: that were read.
        truncated_texts: how many were cut to `max_tokens`.
        rejected: rows that the server refused, which the file does not have.
    """

    rows: int
    reused: int
    tokens: int
    truncated_texts: int
    rejected: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a job did.

    Attributes:
        destination: where the vectors are.
        rows: of the destination, all of them.
        parts: files of the destination, all of them.
        embedded_rows: that were embedded now, not in an earlier run.
        embedded_parts: files that were written now.
        reused_rows: of them, those with a vector that an earlier run had computed for the same text.
        tokens: that were read now.
        truncated_texts: of those embedded now, how many were cut to `max_tokens`.
        rejected_rows: without a text, or refused, in `_rejected.jsonl` of the destination.
        seconds: that embedding took.
    """

    destination: str
    rows: int
    parts: int
    embedded_rows: int
    embedded_parts: int
    reused_rows: int
    tokens: int
    truncated_texts: int
    rejected_rows: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """All that a process needs to embed any part; it pickles.

    Attributes:
        encoder: makes the vectors.
        fingerprint: that the encoder must have.
        wanted: what is wanted of the source.
        embedding_column: the name of the new column.
        schema: of the columns that are kept.
        origin: the source.
        destination: the folder.
        skip_bad: whether a row that a server refuses is set aside.
        reusable: files of earlier runs whose vectors are taken for equal texts.
    """

    encoder: Qwen3Encoder | RemoteEncoder
    fingerprint: str
    wanted: Wanted
    embedding_column: str
    schema: pa.Schema
    origin: Location
    destination: Location
    skip_bad: bool
    reusable: tuple[Location, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A job, what is left of it, and what has to be put in order when it is done.

    Attributes:
        job: the settings.
        rows: of all parts.
        parts: how many there are.
        tasks: those without a file.
        stale: files of rows that the source no longer has there.
        rejected: rows that are not embedded, as far as that is known.
    """

    job: Job
    rows: int
    parts: int
    tasks: Sequence[Task]
    stale: Sequence[Location]
    rejected: Sequence[BadRow]


class Worker:
    """Embeds one part after the other.

    Args:
        job: what to do.
        report: told how many rows were embedded, again and again; None where nobody looks, and each part goes at once.

    Raises:
        ValueError: the encoder's model is another one in this process.
    """

    def __init__(self, job: Job, report: Callable[[int], object] | None = None) -> None:
        self._job = job
        # A server's requests go side by side, and would wait for each other at every step.
        self._in_steps = report is not None and isinstance(job.encoder, Qwen3Encoder)
        self._report = report or (lambda rows: None)
        self._reader = Reader(job.schema, job.wanted, job.origin)
        self._earlier = Earlier(job.reusable, job.wanted.text_column, job.embedding_column)
        if job.encoder.fingerprint != job.fingerprint:
            raise ValueError(
                f"this process has another model than the one that began, {job.encoder.fingerprint} and not "
                f"{job.fingerprint}: give a revision that every machine has"
            )

    def __call__(self, task: Task) -> Done:
        """Read, embed and write a part.

        Args:
            task: which one.

        Returns:
            What it took.

        Raises:
            EndpointError: the server gave no vectors; the message has file and line.
            OSError: a file can't be read or written.
            ValueError: the source has changed.
        """
        table, places = self._reader.read(task.part)
        texts = table.column(self._job.wanted.text_column).to_pylist()
        vectors = np.zeros((len(texts), self._job.encoder.dimensions), dtype=np.float32)
        known = self._earlier.take(texts, vectors)
        if known:
            self._report(len(known))
        new = [place for place in range(len(texts)) if place not in known]
        rejected: dict[int, BadRow] = {}
        size = _STEP_ROWS if self._in_steps else max(1, len(new))
        with record_usage() as recorded:
            for start in range(0, len(new), size):
                step = new[start : start + size]
                vectors[step], refused = self._embed([texts[at] for at in step], [places[at] for at in step])
                for position, reason in refused.items():
                    file, line = places[step[position]]
                    rejected[step[position]] = BadRow(file, line, reason, texts[step[position]])
                self._report(len(step))
        kept = [place for place in range(len(texts)) if place not in rejected]
        table = table.append_column(self._job.embedding_column, fixed_size_lists(vectors))
        self._write(task, table.take(kept) if rejected else table, tuple(rejected.values()))
        usage = recorded.usage
        return Done(len(new) - len(rejected), len(known), usage.tokens, usage.truncated_texts, tuple(rejected.values()))

    def _embed(self, texts: list[str], places: Sequence[tuple[str, int]]) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Embed texts, and say which ones were refused where that is no error; errors name file and line."""
        each = getattr(self._job.encoder, "encode_documents_each", None) if self._job.skip_bad else None
        try:
            if each is None:
                return self._job.encoder.encode_documents(texts), {}
            vectors, refused = each(texts)
            return vectors, {at: str(error).replace(f" at index {at}", "") for at, error in refused.items()}
        except EndpointError as error:
            if error.index is None:
                raise EndpointError(f"{error}, of the rows from {_named(places[0])} on", error.status) from error
            reason = str(error).replace(f" at index {error.index}", "")
            raise EndpointError(f"{_named(places[error.index])}: {reason}", error.status) from error
        except ValueError as error:
            raise ValueError(f"{error}, of the rows from {_named(places[0])} on") from error

    def _write(self, task: Task, table: pa.Table, rejected: Sequence[BadRow]) -> None:
        import pyarrow.parquet as pq

        note = {**_settings(self._job), "source": task.part.file.path, "part": task.key}
        if rejected:
            note["rejected"] = [asdict(row) for row in rejected]
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: json.dumps(note)})
        with _replaced(self._job.destination, task.name) as stream:
            # Numbers that hardly repeat gain nothing from a dictionary.
            pq.write_table(table, stream, compression="zstd", use_dictionary=False)


class Earlier:
    """Vectors of earlier runs by their texts: 16 bytes of memory a row, and those of one file.

    Args:
        files: of the same settings.
        text_column: the column that was embedded.
        embedding_column: the column with the vectors.
    """

    def __init__(self, files: Sequence[Location], text_column: str, embedding_column: str) -> None:
        self._files = files
        self._columns = [text_column, embedding_column]
        self._loaded = not files
        self._keys = self._at = np.zeros(0, dtype=np.uint64)
        self._opened: tuple[int, list[str], NDArray[np.float32]] | None = None

    def take(self, texts: Sequence[str], vectors: NDArray[np.float32]) -> set[int]:
        """Find vectors that are there already.

        Args:
            texts: what to look for.
            vectors: float32 array, shape (n, dimensions), to write them to.

        Returns:
            The positions of the texts that have one.
        """
        found = self._find(texts)
        known = set()
        for position, at in sorted(found.items(), key=lambda item: item[1]):
            # Half of the number is the file's, half the row's.
            number, row = divmod(at, 2**32)
            if self._opened is None or self._opened[0] != number:
                self._opened = (number, *self._read(self._files[number]))
            _, own, rows = self._opened
            if own[row] == texts[position]:
                vectors[position] = rows[row]
                known.add(position)
        return known

    def count(self, batches: Iterable[Sequence[str]]) -> tuple[int, int]:
        """Count the rows whose text is among others.

        Args:
            batches: the other texts.

        Returns:
            Their number, and that of all rows.
        """
        self._load()
        seen = np.zeros(len(self._keys), dtype=bool)
        for texts in batches:
            seen |= np.isin(self._keys, _keys_of(texts))
        return int(seen.sum()), len(seen)

    def _find(self, texts: Sequence[str]) -> dict[int, int]:
        self._load()
        if not len(self._keys):
            return {}
        keys = _keys_of(texts)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return {at: int(self._at[places[at]]) for at in np.flatnonzero(self._keys[places] == keys).tolist()}

    def _load(self) -> None:
        if self._loaded:
            return
        keys, at = [], []
        for number, file in enumerate(self._files):
            texts = self._table(file, self._columns[:1]).column(0).to_pylist()
            keys.append(_keys_of(texts))
            at.append(np.arange(len(texts), dtype=np.uint64) + np.uint64(number * 2**32))
        order = np.argsort(np.concatenate(keys), kind="stable")
        self._keys, self._at = np.concatenate(keys)[order], np.concatenate(at)[order]
        self._loaded = True

    def _read(self, file: Location) -> tuple[list[str], NDArray[np.float32]]:
        table = self._table(file, self._columns)
        vectors = table.column(1).combine_chunks()
        rows = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), vectors.type.list_size)
        return table.column(0).to_pylist(), rows

    def _table(self, file: Location, columns: list[str]) -> pa.Table:
        import pyarrow.parquet as pq

        with file.system.open_input_file(file.path) as stream:
            return pq.read_table(stream, columns=columns)


def _keys_of(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = (hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _named(place: tuple[str, int]) -> str:
    return f"{place[0]}:{place[1]}"


def fixed_size_lists(vectors: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """Give vectors as Arrow and Parquet keep them.

    Args:
        vectors: shape (n, dimensions).

    Returns:
        n lists of `dimensions` float32.
    """
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def plan(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    encoder: Qwen3Encoder | RemoteEncoder,
    *,
    text_column: str,
    embedding_column: str,
    part_rows: int,
    skip_bad: bool,
    columns: Sequence[str] | None,
    delimiter: str | None,
    show_progress: bool,
) -> Plan:
    """Check everything before any text is embedded, and find out what is left to do.

    Args:
        source: a file or a folder.
        destination: a folder, made where there is none.
        encoder: makes the vectors.
        text_column: the column to embed.
        embedding_column: the name of the new one.
        part_rows: rows of a file at most.
        skip_bad: whether rows that can't be embedded are left out, and written to `_rejected.jsonl`.
        columns: those to keep beside the text; None for all.
        delimiter: between the fields of CSV; None for the file's own.
        show_progress: whether to draw a progress bar.

    Returns:
        What is left.

    Raises:
        FileNotFoundError: the source, or the model, is not there.
        ImportError: pyarrow is not installed.
        OSError: a file can't be read.
        ValueError: a row can't be embedded, a column has values of two types, a column's name is taken or missing, or
            the destination holds other vectors.
    """
    require_pyarrow()
    if as_integer("part_rows", part_rows) < 1:
        raise ValueError(f"part_rows must be at least 1, got {part_rows}")
    if isinstance(columns, str):
        raise TypeError(f"columns must be a list of names, got {columns!r}: put it in a list")
    wanted = Wanted(text_column, part_rows, None if columns is None else tuple(columns), checked_delimiter(delimiter))
    origin, target = Location.of(source), Location.of(destination)
    if origin.system == target.system and f"{target.path}/".startswith(f"{origin.path}/"):
        raise ValueError(f"the destination {target.name!r} lies in the source {origin.name!r}: its files would be read")
    files = find_files(origin)
    with tqdm(desc="Checking", unit=" rows", disable=not show_progress) as bar:
        fingerprint = encoder.fingerprint
        scanned = scan(origin, files, wanted, _refusals_of(encoder), bar.update)
    if scanned.bad and not skip_bad:
        raise ValueError(_refusal(scanned.bad))
    if not scanned.parts:
        raise ValueError(f"{origin.name!r} has no row with a text")
    if embedding_column in scanned.schema.names:
        raise ValueError(
            f"{origin.name!r} has a column {embedding_column!r} already: give embedding_column another name"
        )
    job = Job(encoder, fingerprint, wanted, embedding_column, scanned.schema, origin, target, skip_bad)
    _check_schema(job)
    return _compare(job, _tasks(job, scanned.parts), {file.path for file in files}, scanned.bad)


def _refusals_of(encoder: Qwen3Encoder | RemoteEncoder) -> Refusals | None:
    # An encoder that cuts long texts refuses none.
    return encoder.refusals if getattr(encoder.settings, "long_text", "error") == "error" else None


def run(plan: Plan, work: Callable[[Callable[[int], object]], Iterable[Done]], *, show_progress: bool) -> Report:
    """Do what is left, and put the destination in order after the last part.

    Args:
        plan: what is left to do.
        work: gives the results of its tasks, in any order; it may tell of rows that are done before.
        show_progress: whether to draw a progress bar.

    Returns:
        What was done.

    Raises:
        EndpointError: the server gave no vectors.
        OSError: a file can't be read or written.
        ValueError: the source has changed.
    """
    begin = time.perf_counter()
    done: list[Done] = []
    left = sum(task.part.rows for task in plan.tasks)
    rejected = list(plan.rejected)
    begun = {"total": plan.rows, "initial": plan.rows - left, "desc": "Loading" if plan.tasks else "Embedding"}
    with tqdm(**begun, unit=" rows", disable=not show_progress) as bar:

        def report(rows: int) -> None:
            bar.set_description("Embedding", refresh=False)
            bar.update(rows)

        for part in work(report):
            done.append(part)
            rejected += part.rejected
            finished = plan.rows - left + sum(each.rows + each.reused + len(each.rejected) for each in done)
            tokens = sum(each.tokens for each in done)
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s", refresh=False)
            report(max(0, finished - bar.n) if show_progress else 0)
    seconds = time.perf_counter() - begin
    if len(rejected) > len(plan.rejected):
        _write_rejected(plan.job, rejected)
    _remove_leftovers(plan)
    rows, truncated = sum(part.rows for part in done), sum(part.truncated_texts for part in done)
    if truncated:
        logger.warning("%d of %d texts were cut to max_tokens", truncated, rows)
    return Report(
        destination=plan.job.destination.name,
        rows=plan.rows - sum(len(part.rejected) for part in done),
        parts=plan.parts,
        embedded_rows=rows,
        embedded_parts=len(plan.tasks),
        reused_rows=sum(part.reused for part in done),
        tokens=sum(part.tokens for part in done),
        truncated_texts=truncated,
        rejected_rows=len(rejected),
        seconds=seconds,
    )


def _refusal(bad: Sequence[BadRow]) -> str:
    shown = "; ".join(f"{row.file}:{row.row} {row.reason}" for row in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return f"{shown}{more} (skip_bad, or --skip-bad, writes such rows to {REJECTED} and embeds the others)"


def _settings(job: Job) -> dict[str, Any]:
    return {
        "fingerprint": job.fingerprint,
        "text_column": job.wanted.text_column,
        "embedding_column": job.embedding_column,
    }


def _check_schema(job: Job) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(job.schema.empty_table(), pa.BufferOutputStream())
    except pa.ArrowException as error:
        raise ValueError(f"Parquet cannot keep the source's columns: {error}") from error


def _tasks(job: Job, parts: Iterable[Part]) -> list[Task]:
    tasks = []
    times: Counter[str] = Counter()
    schema = job.schema.remove_metadata().to_string()
    for number, part in enumerate(parts):
        times[part.digest] += 1
        # The columns too: a later file may add one to all.
        identity = json.dumps([_settings(job), schema, part.digest, times[part.digest]])
        key = hashlib.blake2b(identity.encode(), digest_size=32).hexdigest()
        tasks.append(Task(part, f"part-{number:06}-{key[:16]}.parquet", key))
    return tasks


def _compare(job: Job, tasks: Sequence[Task], sources: Set[str], bad: Sequence[BadRow]) -> Plan:
    from pyarrow.fs import FileSelector

    target = job.destination
    target.system.create_dir(target.path, recursive=True)
    wanted = {task.key: task for task in tasks}
    damaged: list[Location] = []
    other: list[tuple[Location, str]] = []
    done: dict[str, Location] = {}
    rejected = list(bad)
    rows, moved = sum(task.part.rows for task in tasks), 0
    for info in target.system.get_file_info(FileSelector(target.path)):
        if not info.base_name.endswith(".parquet") or info.base_name.startswith("."):
            continue
        file = target.child(info.base_name)
        note = _note(file)
        if note is None and not _NAME.fullmatch(info.base_name):
            raise ValueError(f"{file.name!r} was written by something else: choose another destination")
        if note is None:
            logger.warning("%s is damaged and is computed again", file.name)
            damaged.append(file)
        elif note["part"] in wanted and (job.skip_bad or not note.get("rejected")):
            done[note["part"]] = file
            refused = [BadRow(**row) for row in note.get("rejected", ())]
            rejected += refused
            rows -= len(refused)
            moved += wanted[note["part"]].part.rows if note["source"] not in sources else 0
        elif {name: note[name] for name in _settings(job)} != _settings(job):
            raise ValueError(
                f"{file.name!r} holds vectors of {note['fingerprint']} of the column {note['text_column']!r}, not of "
                f"{job.fingerprint} of {job.wanted.text_column!r}: choose another destination"
            )
        else:
            other.append((file, note["source"]))
    left = [task for task in tasks if task.key not in done]
    other.sort(key=lambda pair: pair[0].path)
    job = replace(job, reusable=tuple(file for file, _ in other))
    _check_other_sources(job, [pair for pair in other if pair[1] not in sources], left, moved)
    for key, file in done.items():
        final = target.child(wanted[key].name)
        if final.path != file.path:
            target.system.move(file.path, final.path)
    _write_rejected(job, rejected)
    # What is damaged may be written again under its name.
    names = {target.child(task.name).path for task in tasks}
    stale = [file for file in [*damaged, *job.reusable] if file.path not in names]
    return Plan(job, rows, len(tasks), left, stale, rejected)


def _check_other_sources(job: Job, files: Sequence[tuple[Location, str]], left: Sequence[Task], moved: int) -> None:
    """Tell a source that was moved, whose texts are found again, from another one, whose vectors would be lost.

    Args:
        job: the settings.
        files: those that were written from files that are not in the source, and the paths of these.
        left: parts whose texts are looked for.
        moved: rows of such files that were found already.
    """
    if not files:
        return
    reader = Reader(job.schema, job.wanted, job.origin)
    texts = (reader.read(task.part)[0].column(job.wanted.text_column).to_pylist() for task in left)
    earlier = Earlier([file for file, _ in files], job.wanted.text_column, job.embedding_column)
    found, rows = earlier.count(texts)
    if found + moved < _SAME_SOURCE * (rows + moved):
        raise ValueError(
            f"{files[0][0].name!r} holds vectors of {files[0][1]!r}, which is no longer in the source, nor are most of "
            "its texts: choose another destination, or remove it"
        )


def _note(file: Location) -> dict[str, Any] | None:
    # What a finished part says of itself; None where it is not whole, or not one.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.system.open_input_file(file.path) as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        note: dict[str, Any] = json.loads(metadata[METADATA_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
    return note


def _write_rejected(job: Job, bad: Sequence[BadRow]) -> None:
    file = job.destination.child(REJECTED)
    if not bad:
        if file.system.get_file_info([file.path])[0].is_file:
            file.system.delete_file(file.path)
        return
    with _replaced(job.destination, REJECTED) as stream:
        for row in sorted(bad, key=lambda row: (row.file, row.row)):
            stream.write(json.dumps(asdict(row)).encode() + b"\n")


def _remove_leftovers(plan: Plan) -> None:
    # Rows that the source no longer has, and files that a killed process had begun.
    from pyarrow.fs import FileSelector

    target = plan.job.destination
    for file in plan.stale:
        target.system.delete_file(file.path)
    for info in target.system.get_file_info(FileSelector(target.path)):
        if info.base_name.startswith(".part-"):
            target.system.delete_file(info.path)


@contextmanager
def _replaced(folder: Location, name: str) -> Iterator[Any]:
    # A reader, or a crash, finds the whole file or none.
    begun, final = folder.child(f".{name}.{uuid4().hex}"), folder.child(name)
    try:
        with folder.system.open_output_stream(begun.path) as stream:
            yield stream
        folder.system.move(begun.path, final.path)
    except BaseException as error:
        with suppress(OSError):
            folder.system.delete_file(begun.path)
        if isinstance(error, OSError):
            raise OSError(f"{final.name!r} cannot be written: {error}") from error
        raise
