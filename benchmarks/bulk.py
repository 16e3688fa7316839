"""Rows a second of bulk embedding: the engine alone, one process, Ray with actors; and memory against rows.

Run: python -m benchmarks.bulk, with the extra `ray` and nothing else running; all with `tiny`, on short texts. On Linux
only: peak memory is read from /proc.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.bulk import embed_files

WORDS = ("copy", "folder", "parse", "command", "line", "read", "file", "with", "Python", "and", "write", "back")


def write(path: Path, rows: int) -> Path:
    """Write short texts, all different."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            words = [WORDS[(number * step + step) % len(WORDS)] for step in range(3, 3 + 5 + number % 7)]
            file.write(json.dumps({"id": number, "text": f"{' '.join(words)} {number}"}) + "\n")
    return path


def engine_alone(source: Path) -> float:
    """Embed all texts in one call, from memory to memory."""
    encoder = Qwen3Encoder("tiny")
    encoder.encode_documents(["a"])
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    start = time.perf_counter()
    encoder.encode_documents(texts)
    return time.perf_counter() - start


def one_process(source: Path, folder: Path) -> float:
    """Embed a file to files."""
    encoder = Qwen3Encoder("tiny")
    encoder.encode_documents(["a"])
    start = time.perf_counter()
    embed_files(source, folder / "one", encoder=encoder, show_progress=False)
    return time.perf_counter() - start


def ray_actors(source: Path, folder: Path, actors: int) -> tuple[float, float]:
    """Embed a file to files on Ray, and tell the seconds of a job of one row too: actors that start."""
    import ray

    from qwen3_embed_integrations.ray import embed_dataset

    ray.init(num_cpus=actors, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    start = time.perf_counter()
    embed_dataset(write(folder / "one.jsonl", actors), folder / "start", model="tiny", part_rows=1, show_progress=False)
    starting = time.perf_counter() - start
    start = time.perf_counter()
    embed_dataset(source, folder / "ray", model="tiny", workers=actors, show_progress=False)
    return time.perf_counter() - start, starting


def peak_of(source: Path, folder: Path) -> float:
    """Embed a file to files, and tell the process's peak of memory in MiB."""
    embed_files(source, folder / "memory", model="tiny", show_progress=False)
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(
    rows: Annotated[int, typer.Option(help="For the speed.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="How often each has its turn; medians count.")] = 3,
    actors: Annotated[int, typer.Option(help="Of Ray, with a thread each.")] = 2,
    memory_rows: Annotated[str, typer.Option(help="For the memory, with commas between them.")] = (
        "10000,100000,1000000"
    ),
) -> None:
    """Print two tables in Markdown."""
    seconds: dict[str, list[float]] = {"engine alone": [], "one process": [], f"Ray, {actors} actors": [], "": []}
    with TemporaryDirectory() as name:
        source = write(Path(name) / "rows.jsonl", rows)
        for _ in range(rounds):
            with TemporaryDirectory() as folder:
                ray_seconds, starting = alone(ray_actors, source, Path(folder), actors)
                taken = (alone(engine_alone, source), alone(one_process, source, Path(folder)), ray_seconds, starting)
            for times, one in zip(seconds.values(), taken, strict=True):
                times.append(one)
    starting = statistics.median(seconds.pop(""))
    print(f"| {rows:,} rows | seconds | rows/s |\n|---|---|---|")
    for label, times in seconds.items():
        median = statistics.median(times)
        print(f"| {label} | {median:.1f} | {rows / median:,.0f} |", flush=True)
    print(f"\nA job of one row an actor on Ray takes {starting:.1f} s.\n\n| rows | peak MiB |\n|---|---|")
    for size in map(int, memory_rows.split(",")):
        with TemporaryDirectory() as folder:
            source = write(Path(folder) / "rows.jsonl", size)
            print(f"| {size:,} | {alone(peak_of, source, Path(folder)):,.0f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
