"""Files of texts to Parquet files of vectors, in constant memory and resumable (extra `bulk`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen3_embed_integrations.bulk.job import PART_ROWS, Report, Worker, plan, run
from qwen3_embed_integrations.encoder import Qwen3Encoder

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from qwen3_embed_integrations.remote import RemoteEncoder

__all__ = ["PART_ROWS", "Report", "embed_files"]


def embed_files(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    text_column: str = "text",
    *,
    encoder: Qwen3Encoder | RemoteEncoder | None = None,
    embedding_column: str = "embedding",
    part_rows: int = PART_ROWS,
    skip_bad: bool = False,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    show_progress: bool = True,
    **settings: Any,
) -> Report:
    """Embed a column of Parquet, JSON lines, JSON, CSV or TSV files, and write Parquet files with the vectors beside.

    The source is read twice, once to check every row and every column's type before any work, and again part by part:
    memory does not grow with it, but for a JSON array, which is read whole. All but Parquet may be packed (.gz, .zst).
    Every part is written at once to a file that its content and the settings name, so that a run that was killed at any
    point, begun again, embeds what is missing, and every row is there once. Rows are known by their texts: where a
    source was moved, or rows came or went, only new texts are embedded. Rows keep their order, by the names of the
    files. Vectors are a column of fixed-size lists of float32, and the encoder's fingerprint is in the schema's
    metadata, under `qwen3_embed_integrations`.

    A CSV column holds numbers, or true and false, where every field that is not empty is written exactly as JSON writes
    such a value ("7", "0.5", not "007"), an empty one being null; else it holds text. An object without entries is
    null. What folders' names say (lang=en) is a column, as with pyarrow's Hive partitioning. In a folder without such
    files, each .txt, .md and .html (what a reader sees of it) is a document, with its path in the column `source`.

    Args:
        source: a file, or a folder with files; a path, or a URL that pyarrow opens (s3://, gs://, hdfs://).
        destination: a folder outside the source, made where there is none.
        text_column: the column to embed.
        encoder: makes the vectors; None for a `Qwen3Encoder` of the settings.
        embedding_column: the name of the new column.
        part_rows: rows of a file at most; a file also ends after 4 million characters.
        skip_bad: whether rows that can't be embedded (no text, not readable, refused by the encoder or its server as
            too long or otherwise) are written to `_rejected.jsonl` in the destination, and the others embedded, instead
            of refusing them all.
        columns: names of the columns to keep beside the text; None for all.
        delimiter: between the fields of CSV; None for a comma, or a tab in files named .tsv.
        show_progress: whether to draw progress bars.
        **settings: of a `Qwen3Encoder`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: the source, or the model, is not there.
        ImportError: pyarrow is not installed.
        EndpointError: a server gave no vectors; the message has file and line.
        OSError: a file can't be read or written; the message has its name.
        TypeError: a setting is unknown, or given beside an encoder.
        ValueError: a row can't be embedded, or a column has values of two types, with the place; a column's name is
            taken or missing; the destination holds vectors of another model, column or source; or a setting is out of
            range.

    Example:
        >>> from qwen3_embed_integrations.bulk import embed_files
        >>> report = embed_files("documents.jsonl", "vectors", model="tiny")  # doctest: +SKIP
    """
    planned = plan(
        source,
        destination,
        encoder_of(encoder, settings),
        text_column=text_column,
        embedding_column=embedding_column,
        part_rows=part_rows,
        skip_bad=skip_bad,
        columns=columns,
        delimiter=delimiter,
        show_progress=show_progress,
    )
    return run(
        planned,
        lambda report: map(Worker(planned.job, report if show_progress else None), planned.tasks),
        show_progress=show_progress,
    )


def encoder_of(encoder: Qwen3Encoder | RemoteEncoder | None, settings: dict[str, Any]) -> Qwen3Encoder | RemoteEncoder:
    """Take the encoder, or make one of the settings.

    Args:
        encoder: or None.
        settings: of a `Qwen3Encoder`.

    Returns:
        An encoder.

    Raises:
        TypeError: both are given.
    """
    if encoder is None:
        return Qwen3Encoder(**settings)
    if settings:
        raise TypeError(f"{', '.join(settings)} cannot be given beside encoder=: it has its own settings")
    return encoder
