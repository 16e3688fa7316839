"""A LangChain store of many documents: searches with and without filters, milliseconds each.

Run: python -m benchmarks.store, with nothing else running. The vectors are made up, as those of benchmarks/million.py;
scattered filters let a share of the rows through whatever their vectors are.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import typer
from langchain_core.embeddings import Embeddings

from benchmarks.million import EXPONENT, SEED, Vectors, unit
from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
from qwen3_embed_integrations.matryoshka import two_stage_index

PART = 50_000
SHARES = (1000, 100, 50, 30, 10, 2)


class NoEmbeddings(Embeddings):
    """Stands where all vectors are there already."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed nothing."""
        raise NotImplementedError

    def embed_query(self, text: str) -> list[float]:
        """Embed nothing."""
        raise NotImplementedError


def vectors(count: int, dimensions: int, seed: int) -> Vectors:
    """Make vectors up."""
    spread = np.arange(1, dimensions + 1, dtype=np.float32) ** (-EXPONENT / 2)
    return unit(np.random.default_rng([SEED, seed]).standard_normal((count, dimensions), np.float32) * spread)


def filled(count: int, dimensions: int, neighbors: int, ef_construction: int) -> Qwen3VectorStore:
    """Make a store whose documents have a field for each share."""
    index = two_stage_index(dimensions, neighbors=neighbors, ef_construction=ef_construction)
    store = Qwen3VectorStore(NoEmbeddings(), index)
    for start in range(0, count, PART):
        rows = range(start, min(start + PART, count))
        metadatas: list[dict[str, Any]] = [
            {"row": row, **{f"one in {share}": row * 7919 % share for share in SHARES}} for row in rows
        ]
        store.add_embeddings(
            zip(map(str, rows), vectors(len(rows), dimensions, start + 1), strict=True), metadatas, ids=map(str, rows)
        )
    return store


def main(
    count: Annotated[int, typer.Option(help="Documents.")] = 1_000_000,
    dimensions: Annotated[int, typer.Option(help="Of the vectors.")] = 1024,
    queries: Annotated[int, typer.Option(help="Of each kind.")] = 50,
    neighbors: Annotated[int, typer.Option(help="Links of a node in the graph.")] = 48,
    ef_construction: Annotated[int, typer.Option(help="Breadth of the search when a vector is added.")] = 200,
) -> None:
    """Print a table in Markdown."""
    start = time.perf_counter()
    store = filled(count, dimensions, neighbors, ef_construction)
    print(f"{count:,} documents, {dimensions} dimensions, filled in {time.perf_counter() - start:,.0f} s")
    searches: dict[str, tuple[int, Any]] = {f"k={k}": (k, None) for k in (1, 10, 100, 1000)}
    searches |= {f"k=10, one in {share}": (10, {f"one in {share}": 1}) for share in SHARES}
    searches |= {
        "k=10, $in, one in 100": (10, {"one in 1000": list(range(10))}),
        "k=10, a range, one in 100": (10, {"row": {"$lt": count // 100}}),
        "k=10, a function, one in 100": (10, lambda document: document.metadata["one in 100"] == 1),
    }
    print("| search | first ms | p50 | p95 |\n|---|---|---|---|")
    for name, (k, filter) in searches.items():
        times = []
        for query in vectors(1 + (queries if not callable(filter) else 3), dimensions, 0):
            start = time.perf_counter()
            store.similarity_search_with_score_by_vector(query.tolist(), k, filter)
            times.append(1000 * (time.perf_counter() - start))
        p50, p95 = np.percentile(times[1:], (50, 95))
        print(f"| {name} | {times[0]:.1f} | {p50:.2f} | {p95:.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
