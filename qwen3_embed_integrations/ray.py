"""Bulk embedding on Ray Data (https://docs.ray.io/en/latest/data/data.html): one engine an actor, on CPUs or GPUs."""

from __future__ import annotations

import logging
import pickle
from typing import TYPE_CHECKING, Any

try:
    import pyarrow as pa
    import ray.data
except ImportError as error:
    raise ImportError("the Ray adapter needs ray: pip install 'qwen3-embed-integrations[ray]'") from error

from qwen3_embed_integrations.bulk import PART_ROWS, Report, encoder_of
from qwen3_embed_integrations.bulk.job import Done, Job, Worker, fixed_size_lists, plan, run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from qwen3_embed_integrations.bulk.job import Plan, Task
    from qwen3_embed_integrations.encoder import Qwen3Encoder
    from qwen3_embed_integrations.remote import RemoteEncoder

__all__ = ["Qwen3Embedder", "embed_dataset"]


class Qwen3Embedder:
    """Adds vectors to the batches of a Ray dataset, for `map_batches`, which makes one an actor.

    Args:
        text_column: the column to embed.
        embedding_column: the name of the new one.
        encoder: makes the vectors; None for a `Qwen3Encoder` of the settings. It travels without a token: an actor
            finds one in `HF_TOKEN`.
        **settings: of a `Qwen3Encoder`.

    Raises:
        TypeError: a setting is unknown, or given beside an encoder.
        ValueError: a setting is out of range.

    Example:
        >>> import ray
        >>> from qwen3_embed_integrations.ray import Qwen3Embedder
        >>> dataset = ray.data.read_parquet("documents")  # doctest: +SKIP
        >>> dataset = dataset.map_batches(  # doctest: +SKIP
        ...     Qwen3Embedder,
        ...     fn_constructor_kwargs={"model": "4B", "text_column": "text"},
        ...     compute=ray.data.ActorPoolStrategy(size=8),
        ...     num_gpus=1,
        ...     batch_size=4096,
        ... )
    """

    def __init__(
        self,
        text_column: str = "text",
        *,
        embedding_column: str = "embedding",
        encoder: Qwen3Encoder | RemoteEncoder | None = None,
        **settings: Any,
    ) -> None:
        self._text_column = text_column
        self._embedding_column = embedding_column
        self._encoder = encoder_of(encoder, settings)

    def __call__(self, batch: Any) -> Any:
        """Embed a batch.

        Args:
            batch: a dictionary of numpy arrays, a pyarrow table or a pandas data frame, by map_batches' `batch_format`.

        Returns:
            The same with the vectors: an array of shape (n, dimensions), or lists of fixed size in a table.

        Raises:
            KeyError: there is no such column.
            TypeError: a text is not a string.
            ValueError: there is a column of the new name already.
        """
        names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        if self._text_column not in names:
            raise KeyError(f"there is no column {self._text_column!r}; the batch has {', '.join(map(repr, names))}")
        if self._embedding_column in names:
            raise ValueError(
                f"there is a column {self._embedding_column!r} already: give embedding_column another name"
            )
        column = batch[self._text_column]
        vectors = self._encoder.encode_documents(column.to_pylist() if isinstance(batch, pa.Table) else list(column))
        if isinstance(batch, pa.Table):
            return batch.append_column(self._embedding_column, fixed_size_lists(vectors))
        if isinstance(batch, dict):
            return {**batch, self._embedding_column: vectors}
        return batch.assign(**{self._embedding_column: list(vectors)})


def embed_dataset(
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
    workers: int | tuple[int, int] | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **settings: Any,
) -> Report:
    """Embed a column of files on a Ray cluster: `embed_files`, which says how files are read, with many workers.

    Reads and writes the same files, so that a run can begin on one machine and go on on a cluster, or the other way
    round. Source and destination must be where every worker finds them: a shared file system, or s3://, gs:// or
    hdfs://. A worker that dies is started again by Ray and its part embedded again; a run whose driver was killed,
    begun again, embeds what is missing; every row is there once. Connects to the running cluster, or starts Ray on this
    machine, unless `ray.init` was called before.

    Args:
        source: a file, or a folder with files.
        destination: a folder outside the source, made where there is none.
        text_column: the column to embed.
        encoder: makes the vectors; None for a `Qwen3Encoder` of the settings. It travels without a token: a worker
            finds one in `HF_TOKEN`.
        embedding_column: the name of the new column.
        part_rows: rows of a file at most; a file also ends after 4 million characters.
        skip_bad: whether rows that can't be embedded are written to `_rejected.jsonl`, and the others embedded.
        columns: names of the columns to keep beside the text; None for all.
        delimiter: between the fields of CSV; None for a comma, or a tab in files named .tsv.
        show_progress: whether to draw a progress bar.
        workers: how many actors, or the least and the most; None for one a GPU, or one a CPU where there is none.
        num_cpus: of an actor; None for 1. It computes with as many threads.
        num_gpus: of an actor; None for 1 where the cluster has GPUs.
        **settings: of a `Qwen3Encoder`.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: the source, or the model, is not there.
        TypeError: a setting is unknown, or given beside an encoder.
        EndpointError: as `embed_files`.
        OSError: as `embed_files`.
        ValueError: as `embed_files`.
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
    return run(planned, lambda _: _on_ray(planned, workers, num_cpus, num_gpus), show_progress=show_progress)


class _PartEmbedder:
    """An actor's `Worker`, in the types of Ray Data: a pickled task a row, and what came of it."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": [pickle.dumps(self._outcome(pickle.loads(task))) for task in batch["task"]]}

    def _outcome(self, task: Task) -> Done | Exception:
        try:
            return self._worker(task)
        except Exception as error:  # The driver raises it as it is, and not wrapped twice as Ray would.
            return error


def connect(address: str | None) -> None:
    """Connect to a cluster.

    Args:
        address: "auto", "local", HOST:PORT or ray://HOST:PORT; None for a cluster that is running here, or a new one on
            this machine.

    Raises:
        ConnectionError: there is none at the address.
    """
    # The command draws its own bar and prints its own result.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(
        address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
    )


def _on_ray(
    planned: Plan, workers: int | tuple[int, int] | None, num_cpus: float | None, num_gpus: float | None
) -> Iterator[Done]:
    if not planned.tasks:
        return
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    if num_gpus is None and resources.get("GPU"):
        num_gpus = 1
    if workers is None:
        most = resources["GPU"] / num_gpus if num_gpus else resources["CPU"] / (num_cpus or 1)
        workers = max(1, min(int(most), len(planned.tasks)))
    pool = (
        ray.data.ActorPoolStrategy(size=workers)
        if isinstance(workers, int)
        else ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1])
    )
    tasks = [{"task": pickle.dumps(task)} for task in planned.tasks]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _PartEmbedder,
        fn_constructor_args=(planned.job,),
        batch_size=1,
        compute=pool,
        num_cpus=num_cpus or 1,
        num_gpus=num_gpus,
    )
    # One bar is enough, and `run` draws it.
    dataset.context.enable_progress_bars = False
    for row in dataset.iter_rows():
        outcome = pickle.loads(row["outcome"])
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome
