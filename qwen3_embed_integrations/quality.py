"""What instructions and smaller vectors do to quality, and to size, on texts and questions of one's own."""

from __future__ import annotations

import math
import statistics
import textwrap
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_embed_integrations.demo import standard_library
from qwen3_embed_integrations.instructions import resolve_instruction
from qwen3_embed_integrations.judged import Judged, Reading
from qwen3_embed_integrations.judged import read_judged as read_judged  # Where its path was before.
from qwen3_embed_integrations.matryoshka import import_faiss, truncate
from qwen3_embed_integrations.quantization import Quantizer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import faiss
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from qwen3_embed_integrations.encoder import Encoder

    Search = Callable[[NDArray[np.float32], int, NDArray[np.int64]], NDArray[np.int64]]
    """Queries, how many documents to find, and for each query the place of the document that it is itself (-1: none),
    to the places of the others found, best first, and -1 after the last."""

PRECISIONS = ("float32", "int8", "binary")

NO_INSTRUCTION = "none"
"""In an instruction's place: nothing stands before the query. An empty string means the same."""
OWN_INSTRUCTION = "default"
"""In an instruction's place: what the encoder puts before queries by itself."""

TOP = 10
DEEP = 100
"""How many documents a reranker gets, whose recall is measured too."""
RESCORED = 10
"""Candidates found by single bits that are scored again, as a multiple of the documents asked for."""

CONFIDENCE = 0.95
RESAMPLES = 10_000

_LEAST_QUERY = 20
_ROUNDS, _ROUND_SECONDS = 5, 0.1
# Scores that are resampled at once: 16 MB.
_BATCH = 2_000_000


@dataclass(frozen=True)
class Difference:
    """How far a row's nDCG@10 is from that of the row it is compared with, over the same queries.

    Attributes:
        instruction: of the row it is compared with.
        dimensions: of that row.
        precision: of that row.
        mean: this row's nDCG@10 less that row's.
        low: end of the 95% confidence interval of the mean.
        high: its other end.
        verdict: "better" or "worse" where 0 is outside of the interval, "same" where no query's score differs, else
            "unclear". Each interval stands for itself: of twenty comparisons without a difference, one is expected to
            be called better or worse.
    """

    instruction: str
    dimensions: int
    precision: str
    mean: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Row:
    """What was measured with one instruction at one dimension and precision.

    Attributes:
        instruction: of the queries, as it was given, or `NO_INSTRUCTION` for an empty string.
        dimensions: of the vectors.
        precision: of a component.
        bytes: of a vector.
        ndcg: nDCG@10 against the judgements, or None.
        recall: recall@10 against the judgements, or None.
        recall_100: recall@100 against the judgements, or None.
        mrr: MRR@10 against the judgements, or None.
        difference: to the first instruction's row at the same dimension and precision; where this is the first
            instruction, to its first row. None for that row, and without judgements.
        agreement: share of the full float32 vectors' ten nearest, with the same instruction, that are among the ten
            found.
        queries_per_second: of an exact search through all documents, in one batch on all threads.
    """

    instruction: str
    dimensions: int
    precision: str
    bytes: int
    ndcg: float | None
    recall: float | None
    recall_100: float | None
    mrr: float | None
    difference: Difference | None
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
        rows: by dimension, largest first, precision and instruction.
        reading: how the files were read, and what they lack. None where there were none.
    """

    name: str
    model: str
    documents: int
    queries: int
    rows: Sequence[Row]
    reading: Reading | None = None

    @property
    def instructions(self) -> list[str]:
        """The instructions, in the order in which they were given."""
        return list(dict.fromkeys(row.instruction for row in self.rows))

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


def measure(
    encoder: Encoder,
    judged: Judged,
    dimensions: Sequence[int],
    precisions: Sequence[str] = PRECISIONS,
    *,
    instructions: Sequence[str],
    model: str,
    show_progress: bool = False,
) -> Report:
    """Embed in full, documents once and queries once an instruction; then cut, quantise and search.

    int8 is calibrated on the documents. Queries stay in float32. Single bits find candidates by their Hamming distance,
    ten times as many as asked for, which the query in float32 then ranks.

    A document that a query is itself is left out of what is found for it, as if it were not there; one more is found in
    its place.

    Where there are judgements, rows are compared query by query: smaller vectors with the first row, and an instruction
    with the first one at the same vectors, so that one thing differs. `compare` says how.

    Args:
        encoder: makes full vectors.
        judged: the texts.
        dimensions: what to cut the vectors to, each at most the encoder's.
        precisions: of a component.
        instructions: of the queries, each a name or a sentence, `OWN_INSTRUCTION` for the encoder's own, or
            `NO_INSTRUCTION` for bare queries; the others are compared with the first.
        model: its name, for the report.
        show_progress: whether to draw a progress bar while documents are embedded.

    Returns:
        What was measured.

    Raises:
        ImportError: FAISS, which searches, is not installed.
        ValueError: a dimension is out of range, a precision or an instruction unknown, an instruction there twice, or
            there are several without judgements.
    """
    import_faiss()
    for size in dimensions:
        if not 1 <= size <= encoder.dimensions:
            raise ValueError(f"dimensions must be between 1 and {encoder.dimensions}, got {size}")
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ValueError(f"precisions must be among {', '.join(PRECISIONS)}, got {', '.join(unknown)}")
    instructions = [instruction or NO_INSTRUCTION for instruction in instructions]
    _check_instructions(instructions, judged)
    documents = encoder.encode_documents(judged.documents, show_progress=show_progress)
    queries = {instruction: _embed_queries(encoder, judged.queries, instruction) for instruction in instructions}
    own = np.array(judged.themselves or [-1] * len(judged.queries), dtype=np.int64)
    search_full = _float32_search(documents)
    nearest = {instruction: search_full(vectors, TOP, own) for instruction, vectors in queries.items()}
    rows: list[Row] = []
    scores: dict[tuple[str, int, str], NDArray[np.float64]] = {}
    for size in sorted(set(dimensions), reverse=True):
        small = truncate(documents, size)
        small_queries = {instruction: truncate(vectors, size) for instruction, vectors in queries.items()}
        for precision in precisions:
            search = _SEARCHES[precision](small)
            seconds = _seconds(partial(search, small_queries[instructions[0]], TOP, own))
            for instruction, vectors in small_queries.items():
                found = search(vectors, TOP, own)
                means: dict[str, float | None] = dict.fromkeys(("ndcg", "recall", "recall_100", "mrr"))
                difference = None
                if judged.relevant is not None:
                    by_query = _against(judged.relevant, found, search(vectors, DEEP, own))
                    means = {name: float(values.mean()) for name, values in by_query.items()}
                    scores[instruction, size, precision] = by_query["ndcg"]
                    first = next(iter(scores))
                    other = first if instruction == instructions[0] else (instructions[0], size, precision)
                    if other != (instruction, size, precision):
                        mean, low, high, verdict = compare(by_query["ndcg"], scores[other])
                        difference = Difference(*other, mean, low, high, verdict)
                rows.append(
                    Row(
                        instruction=instruction,
                        dimensions=size,
                        precision=precision,
                        bytes={"float32": 4 * size, "int8": size, "binary": -(-size // 8)}[precision],
                        **means,
                        difference=difference,
                        agreement=_agreement(found, nearest[instruction]),
                        queries_per_second=len(vectors) / seconds,
                    )
                )
    return Report(judged.name, model, len(documents), len(judged.queries), rows, judged.reading)


def _check_instructions(instructions: Sequence[str], judged: Judged) -> None:
    sentences: dict[str, str] = {}
    for instruction in instructions:
        sentence = instruction if instruction == OWN_INSTRUCTION else resolve_instruction(instruction)
        if sentence in sentences:
            raise ValueError(f"the instruction {instruction!r} is there twice, as {sentences[sentence]!r} too")
        sentences[sentence] = instruction
    if not sentences:
        raise ValueError("instructions must have at least one, got none")
    if len(sentences) > 1 and judged.relevant is None:
        raise ValueError("comparing instructions needs judgements")


def _embed_queries(encoder: Encoder, queries: Sequence[str], instruction: str) -> NDArray[np.float32]:
    return encoder.encode_queries(queries, instruction=None if instruction == OWN_INSTRUCTION else instruction)


def _agreement(found: NDArray[np.int64], nearest: NDArray[np.int64]) -> float:
    wanted = int((nearest >= 0).sum())
    both = sum(int(np.isin(near[near >= 0], row).sum()) for row, near in zip(found, nearest, strict=True))
    return both / wanted if wanted else 1.0


def _against(
    relevant: Sequence[Mapping[int, float]], found: NDArray[np.int64], deep: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    scores = [
        (ndcg(row, grades), _recall(row, grades), _recall(deep_row, grades), _reciprocal_rank(row, grades))
        for row, deep_row, grades in zip(found, deep, relevant, strict=True)
    ]
    return dict(zip(("ndcg", "recall", "recall_100", "mrr"), np.array(scores).T, strict=True))


def _recall(found: NDArray[np.int64], grades: Mapping[int, float]) -> float:
    return sum(int(place) in grades for place in found) / max(1, len(grades))


def _reciprocal_rank(found: NDArray[np.int64], grades: Mapping[int, float]) -> float:
    return next((1 / rank for rank, place in enumerate(found, start=1) if int(place) in grades), 0.0)


def compare(scores: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float, float, str]:
    """Compare two ways to search by the same queries' scores, with the paired bootstrap.

    For retrieval: Sakai, SIGIR 2006 (https://doi.org/10.1145/1148170.1148261) and Smucker et al., CIKM 2007
    (https://doi.org/10.1145/1321440.1321528). 10,000 resamples of the queries with a fixed seed; percentiles that are
    widened for few queries as Student's are (Hesterberg, 2015, https://doi.org/10.1080/00031305.2015.1089789).
    In a simulation with 60% of equal scores the intervals held the true difference in 85, 91, 94 and 95 of a hundred
    cases with 10, 20, 50 and 225 queries, and with 90% of equal and skewed ones in 59, 75, 88 and 93: with few queries
    that differ they are too narrow.

    Args:
        scores: one a query, shape (n,), between 0 and 1.
        others: of what it is compared with, in the same order.

    Returns:
        The mean difference, both ends of its interval and the verdict, as in `Difference`.
    """
    from scipy.stats import bootstrap, norm, t

    differences = scores - others
    mean, count = float(differences.mean()), len(differences)
    if not differences.any():
        return mean, mean, mean, "same"
    if count == 1:
        # One query tells nothing of others: all that is possible.
        return mean, -1.0, 1.0, "unclear"
    # Plain percentiles are too narrow with few queries, as normal quantiles are beside Student's.
    quantile = t.ppf((1 - CONFIDENCE) / 2, count - 1) * math.sqrt(count / (count - 1))
    interval = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // count),
        confidence_level=1 - 2 * float(norm.cdf(quantile)),
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return mean, low, high, "better" if low > 0 else "worse" if high < 0 else "unclear"


def ndcg(found: Sequence[int] | NDArray[np.int64], grades: Mapping[int, float]) -> float:
    """Compute nDCG with linear gains, as trec_eval does (https://doi.org/10.1145/582415.582418).

    Args:
        found: places of the documents, best first; their number is the depth.
        grades: of the relevant documents by place.

    Returns:
        Between 0 and 1; 0 where no document is relevant.
    """
    if not grades:
        return 0.0
    discounts = 1 / np.log2(np.arange(len(found)) + 2)
    gains = np.array([grades.get(int(place), 0.0) for place in found])
    best = np.sort(np.array(list(grades.values()), dtype=np.float64))[::-1][: len(found)]
    return float(gains @ discounts / (best @ discounts[: len(best)]))


def _seconds(search: Callable[[], object]) -> float:
    search()
    rounds = []
    for _ in range(_ROUNDS):
        start, times = time.perf_counter(), 0
        while times == 0 or time.perf_counter() - start < _ROUND_SECONDS:
            search()
            times += 1
        rounds.append((time.perf_counter() - start) / times)
    return statistics.median(rounds)


def _others(index: faiss.Index, queries: NDArray[Any], top: int, own: NDArray[np.int64]) -> NDArray[np.int64]:
    if (own < 0).all():
        return index.search(queries, top)[1]
    places: NDArray[np.int64] = index.search(queries, top + 1)[1]
    places[places == own[:, None]] = -1
    order = np.argsort(places < 0, axis=1, kind="stable")
    return np.take_along_axis(places, order, axis=1)[:, :top]


def _float32_search(documents: NDArray[np.float32]) -> Search:
    index = import_faiss().IndexFlatIP(documents.shape[1])
    index.add(documents)
    return partial(_others, index)


def _int8_search(documents: NDArray[np.float32]) -> Search:
    faiss = import_faiss()
    index = faiss.IndexScalarQuantizer(documents.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    # The codes of a `Quantizer` calibrated on the documents, which FAISS compares with queries in float32.
    index.train(documents)
    index.add(documents)
    return partial(_others, index)


def _binary_search(documents: NDArray[np.float32]) -> Search:
    quantizer = Quantizer("ubinary")
    codes = quantizer.quantize(documents)
    index = import_faiss().IndexBinaryFlat(8 * codes.shape[1])
    index.add(codes)

    def search(queries: NDArray[np.float32], top: int, own: NDArray[np.int64]) -> NDArray[np.int64]:
        places = _others(index, quantizer.quantize(queries), max(top, min(RESCORED * top, len(codes))), own)
        scores = np.stack(
            [quantizer.scores(query[None], codes[row])[0] for query, row in zip(queries, places, strict=True)]
        )
        scores[places < 0] = -np.inf
        best: NDArray[np.int64] = np.take_along_axis(places, np.argsort(-scores, axis=1)[:, :top], axis=1)
        return best

    return search


_SEARCHES: Mapping[str, Callable[[NDArray[np.float32]], Search]] = {
    "float32": _float32_search,
    "int8": _int8_search,
    "binary": _binary_search,
}


def draw(report: Report, path: Path) -> None:
    """Draw a report and write it as a PNG.

    With one instruction, quality against bytes a vector, one line a precision; with several, how far each is from the
    first one, with its interval, at each dimension and precision.

    Args:
        report: what was measured.
        path: where to write.
    """
    from matplotlib.figure import Figure

    # A Figure without pyplot draws with Agg and leaves the caller's backend alone.
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    title = f"{report.model} on {report.name}: {report.documents:,} documents, {report.queries:,} queries"
    if len(report.instructions) > 1:
        _draw_instructions(report, figure, title)
    else:
        _draw_sizes(report, figure, title)
    figure.savefig(path, format="png")


def _draw_sizes(report: Report, figure: Figure, title: str) -> None:
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
    axes.set_title(title, fontsize=11)


def _draw_instructions(report: Report, figure: Figure, title: str) -> None:
    first, *others = report.instructions
    rows = len(report.rows) // len(report.instructions)
    figure.set_size_inches(8, 2 + rows * (0.3 + 0.22 * len(others)))
    axes = figure.subplots()
    for number, instruction in enumerate(others):
        color = f"C{number}"
        axes.plot([], [], "o-", color=color, label=textwrap.fill(instruction, 70))
        found = [row.difference for row in report.rows if row.instruction == instruction and row.difference is not None]
        for place, difference in enumerate(found, start=1):
            height = place + (number - (len(others) - 1) / 2) * 0.7 / len(others)
            fill = color if difference.verdict in ("better", "worse") else "white"
            axes.plot([difference.low, difference.high], [height, height], color=color)
            axes.plot(difference.mean, height, "o", color=color, markerfacecolor=fill)
    name = textwrap.shorten(first, 60)
    axes.axvline(0, color="0.4", linewidth=1)
    own = [row for row in report.rows if row.instruction == first]
    axes.set_yticks(
        range(1, len(own) + 1),
        [f"{row.dimensions} {row.precision}\n(first: {row.ndcg:.3f})" for row in own],
        fontsize=9,
    )
    axes.set_ylim(len(own) + 0.5, 0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(
        f"nDCG@10 less that of the first, {name}\n95% intervals, hollow where 0 is inside; better to the right"
    )
    figure.legend(loc="outside lower center", frameon=False, ncols=1 if any(" " in name for name in others) else 4)
    axes.set_title(title, fontsize=11)
