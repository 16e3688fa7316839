"""Files of texts to Parquet files of vectors, in constant memory and resumable (extra `bulk`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwen3_embed_integrations.bulk.job import PART_ROWS, Report, Worker, plan, run
from qwen3_embed_integrations.encoder import Qwen3Encoder

if TYPE_CHECKING:
    import os

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
    show_progress: bool = True,
    **settings: Any,
) -> Report:
    """Embed a column of Parquet, JSON lines or CSV files, and write Parquet files with all columns and the vectors.

    The source is read twice, once to check every row before any work, and again part by part: memory does not grow
    with it. Every part is written at once to a file that its content and the settings name, so that a run that was
    killed at any point, begun again, embeds what is missing, and every row is there once. Rows keep their order, by the
    names of the files. Vectors are a column of fixed-size lists of float32, and the encoder's fingerprint is in the
    schema's metadata, under `qwen3_embed_integrations`. CSV columns are kept as text.

    Args:
        source: a file, or a folder with files; a path, or a URL that pyarrow opens (s3://, gs://, hdfs://).
        destination: a folder outside the source, made where there is none.
        text_column: the column to embed.
        encoder: makes the vectors; None for a `Qwen3Encoder` of the settings.
        embedding_column: the name of the new column.
        part_rows: rows of a file at most; a file also ends after 4 million characters.
        skip_bad: whether rows without a text (null, not text, not readable) are written to `_rejected.jsonl` in the
            destination, and the others embedded, instead of refusing them all.
        show_progress: whether to draw a progress bar.
        **settings: of a `Qwen3Encoder`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: the source, or the model, is not there.
        ImportError: pyarrow is not installed.
        TypeError: a setting is unknown, or given beside an encoder.
        ValueError: a row has no text, with its place; a column's name is taken or missing; the destination holds
            vectors of another model, column or source; or a setting is out of range.

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
    )
    return run(planned, map(Worker(planned.job), planned.tasks), show_progress=show_progress)


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
