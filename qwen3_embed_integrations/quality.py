"""What smaller vectors cost in quality and save in size, on texts and questions of one's own."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_embed_integrations.demo import standard_library
from qwen3_embed_integrations.matryoshka import import_faiss, truncate
from qwen3_embed_integrations.quantization import Quantizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from qwen3_embed_integrations.encoder import Encoder

PRECISIONS = ("float32", "int8", "binary")

TOP = 10
RESCORED = 10
"""Candidates found by single bits that are scored again, as a multiple of `TOP`."""

_LEAST_QUERY = 20
_ROUNDS, _ROUND_SECONDS = 5, 0.1


@dataclass(frozen=True)
class Judged:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: what it is, for a table's title.
        documents: the texts.
        queries: the questions.
        relevant: one dictionary a query, from the place of a document to its grade, above 0; None where nobody judged.
    """

    name: str
    documents: Sequence[str]
    queries: Sequence[str]
    relevant: Sequence[Mapping[int, float]] | None


@dataclass(frozen=True)
class Row:
    """What was measured at one dimension and precision.

    Attributes:
        dimensions: of the vectors.
        precision: of a component.
        bytes: of a vector.
        ndcg: nDCG@10 against the judgements, or None.
        recall: recall@10 against the judgements, or None.
        agreement: share of the full float32 vectors' ten nearest that are among the ten found.
        queries_per_second: of an exact search through all documents, in one batch on all threads.
    """

    dimensions: int
    precision: str
    bytes: int
    ndcg: float | None
    recall: float | None
    agreement: float
    queries_per_second: float


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        name: of the data.
        model: that embedded it.
        documents: how many there are.
        queries: how many there are.
        rows: by dimension, full first, and precision.
    """

    name: str
    model: str
    documents: int
    queries: int
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return asdict(self)


def standard_library_questions() -> Judged:
    """Take the standard library: to each docstring's first line, the function or class that it was cut from."""
    entries = {entry.first_line: entry for entry in standard_library() if len(entry.documentation) > _LEAST_QUERY}
    entries = {line: entry for line, entry in entries.items() if len(line) >= _LEAST_QUERY}
    documents = [
        f"{entry.name}{entry.signature}\n{entry.documentation.removeprefix(line)}".strip()
        for line, entry in entries.items()
    ]
    return Judged("Python's standard library", documents, list(entries), [{place: 1} for place in range(len(entries))])


def read_judged(corpus: Path, queries: Path, qrels: Path | None = None) -> Judged:
    """Read files in the layout of BEIR (https://github.com/beir-cellar/beir).

    Args:
        corpus: JSON lines with `_id`, `text` and perhaps `title`, which goes before the text.
        queries: JSON lines with `_id` and `text`.
        qrels: lines of query id, document id and grade, with tabs between them and a heading; None where nobody judged.

    Returns:
        The texts; queries without a relevant document are left out where there are judgements, as in BEIR.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line is not as described; the message has its file and number.
    """
    documents = _read_lines(corpus)
    questions = _read_lines(queries)
    if qrels is None:
        return Judged(corpus.name, list(documents.values()), list(questions.values()), None)
    places = {id_: place for place, id_ in enumerate(documents)}
    relevant: dict[str, dict[int, float]] = {}
    for number, line in enumerate(qrels.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        try:
            query, document, grade = fields[0], fields[1], float(fields[2])
        except (IndexError, ValueError) as error:
            if number == 1:
                continue
            raise ValueError(f"{qrels}:{number} must be query id, document id and grade, got {line!r:.80}") from error
        for id_, known, kind in ((query, questions, "query"), (document, documents, "document")):
            if id_ not in known:
                raise ValueError(f"{qrels}:{number} names the {kind} {id_!r}, which is not there")
        if grade > 0:
            relevant.setdefault(query, {})[places[document]] = grade
    if not relevant:
        raise ValueError(f"{qrels} has no relevant document")
    return Judged(
        corpus.name,
        list(documents.values()),
        [text for id_, text in questions.items() if id_ in relevant],
        [relevant[id_] for id_ in questions if id_ in relevant],
    )


def _read_lines(path: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                id_, text = item["_id"], item["text"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}:{number} must be a JSON object with _id and text: {error!r}") from error
            title = item.get("title") or ""
            if not all(isinstance(value, str) for value in (id_, text, title)):
                raise ValueError(f"{path}:{number} must have strings for _id, title and text")
            if id_ in texts:
                raise ValueError(f"{path}:{number} has the _id {id_!r} again")
            texts[id_] = f"{title}\n{text}" if title else text
    if not texts:
        raise ValueError(f"{path} is empty")
    return texts


def measure(
    encoder: Encoder,
    judged: Judged,
    dimensions: Sequence[int],
    precisions: Sequence[str] = PRECISIONS,
    *,
    model: str,
    show_progress: bool = False,
) -> Report:
    """Embed once in full, then cut, quantise and search at every dimension and precision.

    int8 is calibrated on the documents. Queries stay in float32. Single bits find candidates by their Hamming distance,
    ten times as many as asked for, which the query in float32 then ranks.

    Args:
        encoder: makes full vectors.
        judged: the texts.
        dimensions: what to cut the vectors to, each at most the encoder's.
        precisions: of a component.
        model: its name, for the report.
        show_progress: whether to draw a progress bar while documents are embedded.

    Returns:
        What was measured.

    Raises:
        ImportError: FAISS, which searches, is not installed.
        ValueError: a dimension is out of range, or a precision unknown.
    """
    import_faiss()
    for size in dimensions:
        if not 1 <= size <= encoder.dimensions:
            raise ValueError(f"dimensions must be between 1 and {encoder.dimensions}, got {size}")
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ValueError(f"precisions must be among {', '.join(PRECISIONS)}, got {', '.join(unknown)}")
    documents = encoder.encode_documents(judged.documents, show_progress=show_progress)
    queries = encoder.encode_queries(judged.queries)
    top = min(TOP, len(documents))
    nearest, _ = _float32_search(documents, queries, top)
    rows = []
    for size in sorted(set(dimensions), reverse=True):
        small, small_queries = truncate(documents, size), truncate(queries, size)
        for precision in precisions:
            found, seconds = _SEARCHES[precision](small, small_queries, top)
            scores = None if judged.relevant is None else _against(found, judged.relevant)
            rows.append(
                Row(
                    dimensions=size,
                    precision=precision,
                    bytes={"float32": 4 * size, "int8": size, "binary": -(-size // 8)}[precision],
                    ndcg=None if scores is None else scores[0],
                    recall=None if scores is None else scores[1],
                    agreement=float(
                        np.mean([np.isin(row, best).mean() for row, best in zip(found, nearest, strict=True)])
                    ),
                    queries_per_second=len(queries) / seconds,
                )
            )
    return Report(judged.name, model, len(documents), len(queries), rows)


def _against(found: NDArray[np.int64], relevant: Sequence[Mapping[int, float]]) -> tuple[float, float]:
    pairs = list(zip(found, relevant, strict=True))
    return (
        float(np.mean([ndcg(row, grades) for row, grades in pairs])),
        float(np.mean([sum(int(place) in grades for place in row) / len(grades) for row, grades in pairs])),
    )


def ndcg(found: Sequence[int] | NDArray[np.int64], grades: Mapping[int, float]) -> float:
    """Compute nDCG with linear gains, as trec_eval does (https://doi.org/10.1145/582415.582418).

    Args:
        found: places of the documents, best first; their number is the depth.
        grades: of the relevant documents by place.

    Returns:
        Between 0 and 1.
    """
    discounts = 1 / np.log2(np.arange(len(found)) + 2)
    gains = np.array([grades.get(int(place), 0.0) for place in found])
    best = np.sort(np.array(list(grades.values()), dtype=np.float64))[::-1][: len(found)]
    return float(gains @ discounts / (best @ discounts[: len(best)]))


def _timed(search: Callable[[], NDArray[np.int64]]) -> tuple[NDArray[np.int64], float]:
    found = search()
    rounds = []
    for _ in range(_ROUNDS):
        start, times = time.perf_counter(), 0
        while times == 0 or time.perf_counter() - start < _ROUND_SECONDS:
            search()
            times += 1
        rounds.append((time.perf_counter() - start) / times)
    return found, statistics.median(rounds)


def _float32_search(
    documents: NDArray[np.float32], queries: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], float]:
    index = import_faiss().IndexFlatIP(documents.shape[1])
    index.add(documents)
    return _timed(lambda: index.search(queries, top)[1])


def _int8_search(
    documents: NDArray[np.float32], queries: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], float]:
    faiss = import_faiss()
    index = faiss.IndexScalarQuantizer(documents.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    # The codes of a `Quantizer` calibrated on the documents, which FAISS compares with queries in float32.
    index.train(documents)
    index.add(documents)
    return _timed(lambda: index.search(queries, top)[1])


def _binary_search(
    documents: NDArray[np.float32], queries: NDArray[np.float32], top: int
) -> tuple[NDArray[np.int64], float]:
    quantizer = Quantizer("ubinary")
    codes = quantizer.quantize(documents)
    index = import_faiss().IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)
    candidates = min(RESCORED * top, len(documents))

    def search() -> NDArray[np.int64]:
        places = index.search(quantizer.quantize(queries), candidates)[1]
        scores = np.stack(
            [quantizer.scores(query[None], codes[row])[0] for query, row in zip(queries, places, strict=True)]
        )
        best: NDArray[np.int64] = np.take_along_axis(places, np.argsort(-scores, axis=1)[:, :top], axis=1)
        return best

    return _timed(search)


_SEARCHES = {"float32": _float32_search, "int8": _int8_search, "binary": _binary_search}


def draw(report: Report, path: Path) -> None:
    """Draw quality against bytes a vector, one line a precision, and write it as a PNG.

    Args:
        report: what was measured.
        path: where to write.
    """
    from matplotlib.figure import Figure

    # A Figure without pyplot draws with Agg and leaves the caller's backend alone.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    judged = report.rows[0].ndcg is not None
    for precision in dict.fromkeys(row.precision for row in report.rows):
        rows = [row for row in report.rows if row.precision == precision]
        quality = [row.ndcg if row.ndcg is not None else row.agreement for row in rows]
        axes.plot([row.bytes for row in rows], quality, marker="o", label=precision)
        for row, height in zip(rows, quality, strict=True):
            axes.annotate(f"{row.dimensions}", (row.bytes, height), (4, -11), textcoords="offset points", fontsize=8)
    sizes = sorted({row.bytes for row in report.rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("bytes a vector (numbers at the points: dimensions)")
    axes.set_ylabel("nDCG@10" if judged else "share of the full vectors' ten nearest")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(
        f"{report.model} on {report.name}: {report.documents:,} documents, {report.queries:,} queries", fontsize=11
    )
    figure.savefig(path, format="png")
