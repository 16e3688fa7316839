"""Time against total tokens, and the memory that one long document takes, beside raw sentence-transformers.

Run: python -m benchmarks.scaling --png scaling.png, with the extra `bench` for the plot, and nothing else running. On
Linux only: peak memory is read from /proc. `--help` lists what makes it smaller.
"""

from __future__ import annotations

import re
import statistics
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qwen3_embed_integrations.bench.chart import require_matplotlib
from qwen3_embed_integrations.bench.engines import PEER_DTYPES, BenchEngine, SentenceTransformers, ThisPackage
from qwen3_embed_integrations.bench.measure import SENTENCE, Isolated
from qwen3_embed_integrations.bench.random_model import default_folder, make

NAMES = ("this package", "this package, int8", "sentence-transformers")
BATCH_SIZE = 8  # the best of sentence-transformers on mixed documents
FIRST_TOTAL = 250
MEBI = 2**20


def load(name: str, model: Path, peer_dtype: str) -> BenchEngine:
    """Load an engine by its name in `NAMES`; the type is that of sentence-transformers' weights."""
    if name == "sentence-transformers":
        return SentenceTransformers(model, peer_dtype, "cpu")
    return ThisPackage(model, "int8" if name.endswith("int8") else None, "cpu")


def totals(most: int, steps: int) -> list[int]:
    """Give totals of tokens, evenly spaced."""
    return [int(total) for total in np.linspace(min(FIRST_TOTAL, most), most, steps)]


def documents(total: int) -> list[str]:
    """Make documents of log-normal length that have this many tokens in all; every word of them is one token."""
    random = np.random.default_rng(0)
    words = SENTENCE.split()
    texts: list[str] = []
    while total > 0:
        tokens = min(int(np.clip(random.lognormal(4.6, 0.7), 10, 400)), total)
        texts.append(" ".join(random.choice(words, tokens - 1)))
        total -= tokens
    return texts


def measure_times(model: Path, most: int, steps: int, rounds: int, peer_dtype: str) -> dict[str, list[float]]:
    """Time every engine at every total, one after the other in each round.

    Args:
        model: the model's folder.
        most: tokens of the last step.
        steps: how many totals there are.
        rounds: medians of how many.
        peer_dtype: of sentence-transformers' weights.

    Returns:
        Seconds by engine, one a total.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(steps)] for name in NAMES}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Isolated(partial(load, name, model, peer_dtype))) for name in NAMES}
        for engine in engines.values():
            engine.call(seconds, documents(FIRST_TOTAL))
        for _ in range(rounds):
            for step, total in enumerate(totals(most, steps)):
                for name, engine in engines.items():
                    times[name][step].append(engine.call(seconds, documents(total)))
    return {name: [statistics.median(found) for found in steps_of] for name, steps_of in times.items()}


def seconds(engine: BenchEngine, texts: list[str]) -> float:
    """Embed texts once."""
    start = time.perf_counter()
    engine.encode(texts, "", BATCH_SIZE)
    return time.perf_counter() - start


def peak_growth(engine: BenchEngine, tokens: int) -> int:
    """Embed one document and say by how many bytes the process grew beyond what it held with the model loaded.

    Args:
        engine: with a process of its own.
        tokens: of the document.

    Returns:
        Bytes at the peak.
    """
    engine.encode(documents(FIRST_TOTAL), "", BATCH_SIZE)
    text = " ".join(np.random.default_rng(1).choice(SENTENCE.split(), tokens - 1))
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _status("VmRSS")
    engine.encode([text], "", BATCH_SIZE)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"no {name} in /proc/self/status"
    return 1024 * int(found[1])


def main(
    shape: Annotated[str, typer.Option(help="0.6B, 4B or tiny.")] = "0.6B",
    folder: Annotated[Path | None, typer.Option(help="Where the model is, or goes.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Tokens of the last step.")] = 16_000,
    steps: Annotated[int, typer.Option(min=2, help="How many totals to measure.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Medians of how many.")] = 3,
    long_tokens: Annotated[int, typer.Option(min=2, help="Tokens of the document whose memory is measured.")] = 32_768,
    peer_dtype: Annotated[str, typer.Option(help="Of sentence-transformers: bfloat16 or float32.")] = "bfloat16",
    png: Annotated[Path | None, typer.Option(help="Where to write the plot.")] = None,
) -> None:
    """Print two tables in Markdown, and draw the second."""
    if peer_dtype not in PEER_DTYPES:
        raise typer.BadParameter(
            f"must be one of {', '.join(PEER_DTYPES)}, got {peer_dtype!r}", param_hint="--peer-dtype"
        )
    if png is not None:
        require_matplotlib()
    model = make(default_folder(shape) if folder is None else folder, shape)
    print(f"| peak memory of one document of {long_tokens:,} tokens, beyond the loaded model | MiB |\n|---|---|")
    for name in NAMES:
        with Isolated(partial(load, name, model, peer_dtype)) as engine:
            grown = engine.call(peak_growth, long_tokens)
        print(f"| {name} | {grown / MEBI:,.0f} |", flush=True)
    times = measure_times(model, most, steps, rounds, peer_dtype)
    print(f"\n| tokens in all, s | {' | '.join(NAMES)} |\n|---|{'---|' * len(NAMES)}")
    for step, total in enumerate(totals(most, steps)):
        print(f"| {total:,} | {' | '.join(f'{times[name][step]:.3f}' for name in NAMES)} |")
    if png is not None:
        draw(times, totals(most, steps), shape, png)


def draw(times: dict[str, list[float]], tokens: list[int], shape: str, path: Path) -> None:
    """Plot seconds against tokens, and write a PNG.

    Args:
        times: seconds by engine.
        tokens: of each step.
        shape: of the model.
        path: where to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for name, found in times.items():
        axes.plot(tokens, found, marker="o", label=name)
    axes.set(xlabel="tokens of all documents", ylabel="seconds", title=f"Qwen3-Embedding {shape}, mixed documents")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


if __name__ == "__main__":
    typer.run(main)
