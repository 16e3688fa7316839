"""Embedding a source part by part, each written at once to a file that its content and the settings name."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tqdm import tqdm

from qwen3_embed_integrations.bulk.source import BadRow, Location, Part, Reader, find_files, require_pyarrow, scan
from qwen3_embed_integrations.matryoshka import as_integer
from qwen3_embed_integrations.usage import record_usage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Sequence, Set

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from qwen3_embed_integrations.encoder import Qwen3Encoder
    from qwen3_embed_integrations.remote import RemoteEncoder

logger = logging.getLogger(__name__)

PART_ROWS = 4096
REJECTED = "_rejected.jsonl"
METADATA_KEY = b"qwen3_embed_integrations"

_NAME = re.compile(r"part-\d{6,}-[0-9a-f]{16}\.parquet")
_SHOWN = 5


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
        rows: how many it has.
        tokens: that were read.
        truncated_texts: how many were cut to `max_tokens`.
    """

    rows: int
    tokens: int
    truncated_texts: int


@dataclass(frozen=True)
class Report:
    """What a job did.

    Attributes:
        destination: where the vectors are.
        rows: of the destination, all of them.
        parts: files of the destination, all of them.
        embedded_rows: that were embedded now, not in an earlier run.
        embedded_parts: the same in files.
        tokens: that were read now.
        truncated_texts: of those embedded now, how many were cut to `max_tokens`.
        rejected_rows: without a text, in `_rejected.jsonl` of the destination.
        seconds: that embedding took.
    """

    destination: str
    rows: int
    parts: int
    embedded_rows: int
    embedded_parts: int
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
        text_column: the column to embed.
        embedding_column: the name of the new one.
        schema: of the columns that are kept.
        destination: the folder.
    """

    encoder: Qwen3Encoder | RemoteEncoder
    fingerprint: str
    text_column: str
    embedding_column: str
    schema: pa.Schema
    destination: Location


@dataclass(frozen=True)
class Plan:
    """A job, what is left of it, and what has to be put in order when it is done.

    Attributes:
        job: the settings.
        rows: of all parts.
        parts: how many there are.
        tasks: those without a file.
        stale: files of rows that the source no longer has.
        rejected_rows: how many have no text.
    """

    job: Job
    rows: int
    parts: int
    tasks: Sequence[Task]
    stale: Sequence[Location]
    rejected_rows: int


class Worker:
    """Embeds one part after the other.

    Args:
        job: what to do.

    Raises:
        ValueError: the encoder's model is another one in this process.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader = Reader(job.schema, job.text_column)
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
            ValueError: the source has changed, or a text has too many tokens for an encoder that cuts none.
        """
        table = self._reader.read(task.part)
        texts = table.column(self._job.text_column).to_pylist()
        try:
            with record_usage() as recorded:
                vectors = self._job.encoder.encode_documents(texts)
        except ValueError as error:
            raise ValueError(f"{error}, of the rows from {task.part.file.name}:{task.part.line} on") from error
        self._write(task, table.append_column(self._job.embedding_column, fixed_size_lists(vectors)))
        return Done(len(texts), recorded.usage.tokens, recorded.usage.truncated_texts)

    def _write(self, task: Task, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        note = {**_settings(self._job), "source": task.part.file.path, "part": task.key}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), METADATA_KEY: json.dumps(note)})
        with _replaced(self._job.destination, task.name) as stream:
            # Numbers that hardly repeat gain nothing from a dictionary.
            pq.write_table(table, stream, compression="zstd", use_dictionary=False)


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
) -> Plan:
    """Check everything before any text is embedded, and find out what is left to do.

    Args:
        source: a file or a folder: Parquet, JSON lines or CSV.
        destination: a folder, made where there is none.
        encoder: makes the vectors.
        text_column: the column to embed.
        embedding_column: the name of the new one.
        part_rows: rows of a file at most.
        skip_bad: whether rows without a text are left out, and written to `_rejected.jsonl`.

    Returns:
        What is left.

    Raises:
        FileNotFoundError: the source, or the model, is not there.
        ImportError: pyarrow is not installed.
        ValueError: a row has no text, a column's name is taken or missing, or the destination holds other vectors.
    """
    require_pyarrow()
    if as_integer("part_rows", part_rows) < 1:
        raise ValueError(f"part_rows must be at least 1, got {part_rows}")
    origin, target = Location.of(source), Location.of(destination)
    if origin.system == target.system and f"{target.path}/".startswith(f"{origin.path}/"):
        raise ValueError(f"the destination {target.name!r} lies in the source {origin.name!r}: its files would be read")
    files = find_files(origin)
    fingerprint = encoder.fingerprint
    scanned = scan(files, text_column, part_rows)
    if scanned.bad and not skip_bad:
        raise ValueError(_refusal(scanned.bad))
    if not scanned.parts:
        raise ValueError(f"{origin.name!r} has no row with a text")
    if embedding_column in scanned.schema.names:
        raise ValueError(
            f"{origin.name!r} has a column {embedding_column!r} already: give embedding_column another name"
        )
    job = Job(encoder, fingerprint, text_column, embedding_column, scanned.schema, target)
    _check_schema(job)
    return _compare(job, _tasks(job, scanned.parts), {file.path for file in files}, scanned.bad)


def run(plan: Plan, results: Iterable[Done], *, show_progress: bool) -> Report:
    """Take the results as they come, and put the destination in order after the last.

    Args:
        plan: what is left to do.
        results: of its tasks, in any order.
        show_progress: whether to draw a progress bar.

    Returns:
        What was done.
    """
    begin = time.perf_counter()
    left = sum(task.part.rows for task in plan.tasks)
    rows = tokens = truncated = 0
    with tqdm(
        total=plan.rows, initial=plan.rows - left, desc="Embedding", unit=" rows", disable=not show_progress
    ) as bar:
        for done in results:
            rows, tokens, truncated = rows + done.rows, tokens + done.tokens, truncated + done.truncated_texts
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - begin):,.0f} tokens/s", refresh=False)
            bar.update(done.rows)
    seconds = time.perf_counter() - begin
    _remove_leftovers(plan)
    if truncated:
        logger.warning("%d of %d texts were cut to max_tokens", truncated, rows)
    return Report(
        destination=plan.job.destination.name,
        rows=plan.rows,
        parts=plan.parts,
        embedded_rows=rows,
        embedded_parts=len(plan.tasks),
        tokens=tokens,
        truncated_texts=truncated,
        rejected_rows=plan.rejected_rows,
        seconds=seconds,
    )


def _refusal(bad: Sequence[BadRow]) -> str:
    shown = "; ".join(f"{row.file}:{row.row} {row.reason}" for row in bad[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return f"{shown}{more} (skip_bad, or --skip-bad, writes such rows to {REJECTED} and embeds the others)"


def _settings(job: Job) -> dict[str, Any]:
    return {
        "fingerprint": job.fingerprint,
        "text_column": job.text_column,
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
    stale: list[Location] = []
    done: dict[str, Location] = {}
    for info in target.system.get_file_info(FileSelector(target.path)):
        if not info.base_name.endswith(".parquet") or info.base_name.startswith("."):
            continue
        file = target.child(info.base_name)
        note = _note(file)
        if note is None and not _NAME.fullmatch(info.base_name):
            raise ValueError(f"{file.name!r} was written by something else: choose another destination")
        if note is None:
            logger.warning("%s is damaged and is computed again", file.name)
            stale.append(file)
        elif note["part"] in wanted:
            done[note["part"]] = file
        elif {name: note[name] for name in _settings(job)} != _settings(job):
            raise ValueError(
                f"{file.name!r} holds vectors of {note['fingerprint']} of the column {note['text_column']!r}, not of "
                f"{job.fingerprint} of {job.text_column!r}: choose another destination"
            )
        elif note["source"] not in sources:
            raise ValueError(
                f"{file.name!r} holds vectors of {note['source']!r}, which is no longer in the source: choose another "
                "destination, or remove it"
            )
        else:
            stale.append(file)
    for key, file in done.items():
        final = target.child(wanted[key].name)
        if final.path != file.path:
            target.system.move(file.path, final.path)
    _write_rejected(job, bad)
    left = [task for task in tasks if task.key not in done]
    # What is damaged may be written again under its name.
    names = {target.child(task.name).path for task in tasks}
    stale = [file for file in stale if file.path not in names]
    return Plan(job, sum(task.part.rows for task in tasks), len(tasks), left, stale, len(bad))


def _note(file: Location) -> dict[str, str] | None:
    # What a finished part says of itself; None where it is not whole, or not one.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with file.system.open_input_file(file.path) as stream:
            metadata = pq.read_metadata(stream).metadata or {}
        note: dict[str, str] = json.loads(metadata[METADATA_KEY])
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
        for row in bad:
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
    begun = folder.child(f".{name}.{uuid4().hex}")
    try:
        with folder.system.open_output_stream(begun.path) as stream:
            yield stream
        folder.system.move(begun.path, folder.child(name).path)
    except BaseException:
        with suppress(OSError):
            folder.system.delete_file(begun.path)
        raise
