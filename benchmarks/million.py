"""A million vectors: the two-stage index beside exact search and other graphs over the full vectors.

Run: python -m benchmarks.million --folder FOLDER, with faiss-cpu, usearch and hnswlib installed and nothing else
running. On Linux only: memory is read from /proc. Texts are the paragraphs of all Python sources of this environment,
embedded once by `tiny` and kept in the folder. `--synthetic` takes made-up vectors of the 4B's 2,560 dimensions
instead.

Every engine is built and searched in a process of its own, at each breadth of the search in turn; what it reports is
the quickest breadth whose recall@10 against an exact search of the full vectors is 0.98 or better, or else its best.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

TOP, AIM = 10, 0.98
PART = 50_000
SEED = 0
LEAST_CHARACTERS, MOST_CHARACTERS = 40, 240
BREADTHS = (64, 96, 128, 192, 256, 384, 512, 768)
NEIGHBORS, EF_CONSTRUCTION = 48, 200

# Measured on 200,000 of tiny's document vectors: the eigenvalues of their covariance fall as rank ** -0.74, and a
# query's cosines to its first, tenth and hundredth document are 0.64, 0.54 and 0.45.
SYNTHETIC_DIMENSIONS = 2560
EXPONENT = 0.74
TOPIC, TOPIC_SHARE = 100, 0.45
SUBTOPIC, SUBTOPIC_SHARE = 10, 0.54


@dataclass(frozen=True)
class Result:
    """One engine.

    Attributes:
        engine: its name.
        breadth: of its search.
        recall: recall@10 against exact search.
        p50: median milliseconds of a query on one thread.
        p95: of 95 in a hundred.
        p99: of 99 in a hundred.
        queries_per_second: on all threads, in one batch.
        build_seconds: to add all vectors on all threads.
        gibibytes: that the process grew by.
    """

    engine: str
    breadth: int | None
    recall: float
    p50: float
    p95: float
    p99: float
    queries_per_second: float
    build_seconds: float
    gibibytes: float


def pieces(text: str) -> Iterator[str]:
    """Cut a source at blank lines, and what is longer at line ends."""
    for block in re.split(r"\n\s*\n", text):
        piece = ""
        for line in block.splitlines(keepends=True):
            if piece and len(piece) + len(line) > MOST_CHARACTERS:
                yield piece.strip("\n")
                piece = ""
            piece += line
        yield piece.strip("\n")


def source_texts() -> list[str]:
    """Give the distinct pieces of every Python source of this environment."""
    found: dict[str, None] = {}
    for root in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(root)).rglob("*.py")):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            found |= dict.fromkeys(piece for piece in pieces(text) if LEAST_CHARACTERS <= len(piece) <= MOST_CHARACTERS)
    return list(found)


def embed(folder: Path, count: int, queries: int) -> None:
    """Embed texts with `tiny` part by part, but what is there already; queries are first lines of held-out pieces."""
    parts = range(0, count, PART)
    if (folder / "queries.npy").exists() and all((folder / name(part)).exists() for part in parts):
        return
    from qwen3_embed_integrations import Qwen3Encoder

    folder.mkdir(parents=True, exist_ok=True)
    texts = source_texts()
    if len(texts) < count + queries:
        raise typer.BadParameter(f"there are only {len(texts):,} texts in this environment", param_hint="--count")
    texts = [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[: count + queries]]
    digest, noted = hashlib.sha256(repr(texts).encode()).hexdigest(), folder / "texts.sha256"
    if noted.exists() and noted.read_text() != digest:
        raise typer.BadParameter("its embeddings are of other texts, or of other counts", param_hint="--folder")
    noted.write_text(digest)
    encoder = Qwen3Encoder("tiny")
    questions = [text.strip().splitlines()[0].strip() for text in texts[count:]]
    np.save(folder / "queries.npy", encoder.encode_queries(questions).astype(np.float16))
    for start in parts:
        if not (folder / name(start)).exists():
            vectors = encoder.encode_documents(texts[start : min(start + PART, count)], show_progress=True)
            np.save(folder / name(start), vectors.astype(np.float16))


def name(start: int) -> str:
    """Give the file name of a part."""
    return f"documents.{start // PART:03}.npy"


def unit(vectors: NDArray[Any]) -> Vectors:
    """Bring vectors to unit length."""
    vectors = vectors.astype(np.float32)
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


@dataclass(frozen=True)
class Data:
    """Where the vectors come from: the folder of `embed`, or, without one, a random generator.

    Attributes:
        folder: of `embed`, or None.
        count: of documents.
        queries: how many.
    """

    folder: Path | None
    count: int
    queries: int

    def documents(self) -> Iterator[Vectors]:
        """Give the documents in parts, the same every time."""
        for start in range(0, self.count, PART):
            size = min(PART, self.count - start)
            if self.folder is not None:
                yield unit(np.load(self.folder / name(start))[:size])
            else:
                yield self._around(np.arange(start, start + size), start + 1)

    def questions(self) -> Vectors:
        """Give the queries."""
        if self.folder is not None:
            return unit(np.load(self.folder / "queries.npy")[: self.queries])
        rows = np.random.default_rng(SEED).integers(0, self.count, self.queries)
        return self._around(rows, self.count + 1)

    def _around(self, rows: NDArray[np.int64], seed: int) -> Vectors:
        # Topic, subtopic and the text itself share the vector, each drawn from the same spectrum.
        spread = np.arange(1, SYNTHETIC_DIMENSIONS + 1, dtype=np.float32) ** (-EXPONENT / 2)
        drawn: Vectors = np.random.default_rng([SEED, seed]).standard_normal((len(rows), spread.size), np.float32)
        drawn *= spread * (1 - SUBTOPIC_SHARE) ** 0.5
        for size, share in ((TOPIC, TOPIC_SHARE), (SUBTOPIC, SUBTOPIC_SHARE - TOPIC_SHARE)):
            groups, members = np.unique(rows // size, return_inverse=True)
            centres = np.stack(
                [
                    np.random.default_rng([SEED, size, group]).standard_normal(spread.size, np.float32)
                    for group in groups
                ]
            )
            drawn += (centres * spread * share**0.5)[members]
        return unit(drawn)


Search = Callable[[Vectors, int, int], NDArray[np.int64]]
"""From queries, breadth and threads to places, shape (n, TOP)."""


def faiss_search(index: Any, graph: Any) -> Search:
    """Search a FAISS index, whose graph, if it has one, is told the breadth."""
    import faiss

    def search(queries: Vectors, breadth: int, threads: int) -> NDArray[np.int64]:
        faiss.omp_set_num_threads(threads)
        if graph is not None:
            graph.hnsw.efSearch = breadth
        places: NDArray[np.int64] = index.search(queries, TOP)[1]
        return places

    return search


def two_stages(data: Data, search_dimensions: int, oversampling: int) -> Search:
    """Build this package's index."""
    import faiss

    from qwen3_embed_integrations.matryoshka import two_stage_index

    index = None
    for vectors in data.documents():
        index = index or two_stage_index(
            vectors.shape[1],
            search_dimensions,
            oversampling=oversampling,
            neighbors=NEIGHBORS,
            ef_construction=EF_CONSTRUCTION,
        )
        index.add(vectors)
    assert index is not None
    return faiss_search(index, faiss.downcast_index(faiss.downcast_index(index.base_index).index))


def faiss_hnsw(data: Data) -> Search:
    """Build FAISS's graph over the full vectors in float32."""
    import faiss

    index = None
    for vectors in data.documents():
        if index is None:
            index = faiss.IndexHNSWFlat(vectors.shape[1], NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = EF_CONSTRUCTION
        index.add(vectors)
    return faiss_search(index, index)


def exact(data: Data) -> Search:
    """Keep the full vectors in float32, and compare with every one."""
    import faiss

    index = None
    for vectors in data.documents():
        index = index or faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
    return faiss_search(index, None)


def usearch(data: Data) -> Search:
    """Build usearch's graph over the full vectors in its default, bfloat16 or float32 by what the processor has."""
    from usearch.index import Index

    index = None
    for vectors in data.documents():
        index = index or Index(
            ndim=vectors.shape[1], metric="ip", connectivity=NEIGHBORS, expansion_add=EF_CONSTRUCTION
        )
        index.add(np.arange(len(index), len(index) + len(vectors)), vectors)

    def search(queries: Vectors, breadth: int, threads: int) -> NDArray[np.int64]:
        index.expansion_search = breadth
        places: NDArray[np.int64] = np.atleast_2d(index.search(queries, TOP, threads=threads).keys).astype(np.int64)
        return places

    return search


def hnswlib(data: Data) -> Search:
    """Build hnswlib's graph over the full vectors in float32."""
    from hnswlib import Index

    index = None
    for vectors in data.documents():
        if index is None:
            index = Index("ip", vectors.shape[1])
            index.init_index(data.count, M=NEIGHBORS, ef_construction=EF_CONSTRUCTION)
        index.add_items(vectors)

    def search(queries: Vectors, breadth: int, threads: int) -> NDArray[np.int64]:
        index.set_ef(breadth)
        places: NDArray[np.int64] = index.knn_query(queries, TOP, num_threads=threads)[0].astype(np.int64)
        return places

    return search


def resident() -> float:
    """Give this process's memory in GiB."""
    kilobytes = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert kilobytes is not None
    return int(kilobytes[1]) / 2**20


def nearest(data: Data) -> NDArray[np.int64]:
    """Find the true ten of every query, part by part, in the memory of one part."""
    questions = data.questions()
    best_scores = np.full((len(questions), TOP), -np.inf, dtype=np.float32)
    best_places = np.zeros((len(questions), TOP), dtype=np.int64)
    start = 0
    for vectors in data.documents():
        scores = questions @ vectors.T
        places = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        joined = np.concatenate([best_scores, np.take_along_axis(scores, places, axis=1)], axis=1)
        joined_places = np.concatenate([best_places, places + start], axis=1)
        order = np.argsort(-joined, axis=1)[:, :TOP]
        best_scores = np.take_along_axis(joined, order, axis=1)
        best_places = np.take_along_axis(joined_places, order, axis=1)
        start += len(vectors)
    return best_places


def measure(
    engine: str,
    build: Callable[..., Search],
    arguments: tuple[Any, ...],
    data: Data,
    true: NDArray[np.int64],
    threads: int,
) -> list[Result]:
    """Build an engine and search at every breadth; called in a process of its own."""
    questions = data.questions()
    before, start = resident(), time.perf_counter()
    search = build(data, *arguments)
    seconds, memory = time.perf_counter() - start, resident() - before
    results = []
    for breadth in BREADTHS if build is not exact else (None,):
        asked = questions if build is not exact else questions[:100]
        search(asked, breadth or 0, threads)
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            found = search(asked, breadth or 0, threads)
            rates.append(len(asked) / (time.perf_counter() - start))
        times = []
        for question in asked:
            start = time.perf_counter()
            search(question[None], breadth or 0, 1)
            times.append(1000 * (time.perf_counter() - start))
        recall = np.mean([np.isin(row, right).mean() for row, right in zip(found, true, strict=False)])
        quantiles = (float(value) for value in np.percentile(times, (50, 95, 99)))
        results.append(Result(engine, breadth, float(recall), *quantiles, statistics.median(rates), seconds, memory))
        if recall >= 0.995:
            break
    return results


def main(
    folder: Annotated[Path | None, typer.Option(help="Where the embeddings are, or go.")] = None,
    synthetic: Annotated[bool, typer.Option(help="Vectors of 2,560 dimensions, made up.")] = False,
    count: Annotated[int, typer.Option(help="Documents.")] = 1_000_000,
    queries: Annotated[int, typer.Option(help="Queries.")] = 1000,
    search_dimensions: Annotated[int, typer.Option(help="Of the first stage.")] = 256,
    oversampling: Annotated[int, typer.Option(help="Of the second stage.")] = 12,
    threads: Annotated[int, typer.Option(help="For building and for the throughput.")] = 2,
    engines: Annotated[str, typer.Option(help="With commas between them.")] = "two-stage,faiss,usearch,hnswlib,exact",
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write every breadth's result.")] = None,
) -> None:
    """Print a table in Markdown."""
    if (folder is None) == (not synthetic):
        raise typer.BadParameter("give either --folder or --synthetic")
    if folder is not None:
        embed(folder, count, queries)
    data = Data(folder, count, queries)
    builders: dict[str, tuple[str, Callable[..., Search], tuple[Any, ...]]] = {
        "two-stage": (
            f"two stages, {search_dimensions} dimensions first",
            two_stages,
            (search_dimensions, oversampling),
        ),
        "faiss": ("FAISS HNSW, full float32", faiss_hnsw, ()),
        "usearch": ("usearch, full", usearch, ()),
        "hnswlib": ("hnswlib, full float32", hnswlib, ()),
        "exact": ("exact, full float32", exact, ()),
    }
    true = nearest(data)
    results = []
    print("| engine | breadth | recall@10 | p50 ms | p95 | p99 | queries/s | build s | GiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key in engines.split(","):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(measure, *builders[key], data, true, threads).result()
        results += found
        good = [result for result in found if result.recall >= AIM]
        best = min(good, key=lambda result: result.p50) if good else max(found, key=lambda result: result.recall)
        print(
            f"| {best.engine} | {best.breadth or ''} | {best.recall:.4f} | {best.p50:.3f} | {best.p95:.3f} | "
            f"{best.p99:.3f} | {best.queries_per_second:,.0f} | {best.build_seconds:,.0f} | {best.gibibytes:.2f} |",
            flush=True,
        )
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
