"""Measures: Cranfield, held-out pairs, the standard library's functions, and whether instructions matter."""

from __future__ import annotations

import gzip
import json
import math
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.tiny import extract
from training.tiny.instructions import DEFAULT, UNSEEN_CODE, UNSEEN_PROSE, format_query
from training.tiny.questions import QUESTIONS

if TYPE_CHECKING:
    from training.tiny.data import Corpus

CODE_INSTRUCTION = "Find functions that:"
INSTRUCTIONS = {
    "code": (CODE_INSTRUCTION,),
    "web": (DEFAULT,),
    "unseen code": UNSEEN_CODE,
    "unseen prose": UNSEEN_PROSE,
}
SKIPPED_MODULES = re.compile(
    r"(^|/)(test|tests|idlelib|lib2to3|site-packages|turtledemo|pydoc_data|_(?!_init__)\w+)(/|\.py$)"
)
Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
Qrels = Sequence[Mapping[int, float]]


def ndcg(scores: NDArray[np.float32], relevant: Qrels, k: int = 10) -> float:
    """Mean nDCG at k.

    Args:
        scores: shape (queries, documents).
        relevant: for each query the gain of each relevant document.
        k: ranks that count.

    Returns:
        Mean over the queries that have a relevant document.
    """
    values = []
    for row, gains in zip(scores, relevant, strict=True):
        best = sorted(gains.values(), reverse=True)[:k]
        ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
        top = np.argsort(-row, kind="stable")[:k]
        if ideal:
            values.append(sum(gains.get(int(d), 0) / math.log2(r + 2) for r, d in enumerate(top)) / ideal)
    return float(np.mean(values))


def bm25(documents: Sequence[str], queries: Sequence[str], k1: float = 1.2, b: float = 0.75) -> NDArray[np.float32]:
    """Score documents by BM25, words in lower case.

    Returns:
        Shape (queries, documents).
    """
    words = [re.findall(r"[a-z0-9]+", document.lower()) for document in documents]
    counts = [Counter(row) for row in words]
    frequency = Counter(word for row in counts for word in row)
    mean = sum(map(len, words)) / len(words)
    postings: dict[str, list[tuple[int, float]]] = {}
    for index, row in enumerate(counts):
        norm = k1 * (1 - b + b * len(words[index]) / mean)
        for word, count in row.items():
            postings.setdefault(word, []).append((index, count * (k1 + 1) / (count + norm)))
    scores = np.zeros((len(queries), len(documents)), np.float32)
    for row, query in enumerate(queries):
        for word in re.findall(r"[a-z0-9]+", query.lower()):
            idf = math.log(1 + (len(documents) - frequency[word] + 0.5) / (frequency[word] + 0.5))
            for index, weight in postings.get(word, ()):
                scores[row, index] += idf * weight
    return scores


def cut(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """Keep the first dimensions at unit length."""
    head = vectors[:, :dimensions]
    return head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-9)


def load_cranfield(path: Path) -> tuple[list[str], list[str], list[dict[int, float]]]:
    """Read Cranfield as queries, documents and gains."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    ids = list(data["corpus"])
    index = {identifier: i for i, identifier in enumerate(ids)}
    names = [name for name in data["queries"] if data["qrels"].get(name)]
    gains = [{index[d]: float(g) for d, g in data["qrels"][q].items() if d in index and g > 0} for q in names]
    return [data["queries"][q] for q in names], [data["corpus"][i] for i in ids], gains


def standard_library() -> list[extract.Function]:
    """Give the documented public functions and classes of the running Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, extract.Function] = {}
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root))
        if not SKIPPED_MODULES.search(name):
            module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for function in extract.functions_of_source("python", module, path.read_text(errors="ignore")):
                found.setdefault(function.name, function)
    return list(found.values())


def describe(function: extract.Function) -> str:
    """Write a function as name, signature and docstring."""
    signature = function.signature.removeprefix("def ").removeprefix("class ")
    short = function.name.rsplit(".", 1)[-1]
    return f"{signature.replace(short, function.name, 1)}\n{function.docstring}"[:1500]


def held_out_pairs(corpus: Corpus, kind: int, limit: int = 1000) -> tuple[list[str], list[str], list[dict[int, float]]]:
    """Give queries, documents and gains of the pairs of a kind that training never saw."""
    chosen = corpus.pairs[corpus.pair_held_out & (corpus.pairs[:, 3] == kind)]
    chosen = chosen[np.random.default_rng(1).permutation(len(chosen))[:limit]]
    documents = list(dict.fromkeys(chosen[:, 1].tolist()))
    place = {document: i for i, document in enumerate(documents)}
    gains = [{place[d]: 1.0} for d in chosen[:, 1].tolist()]
    return [corpus.texts[q] for q in chosen[:, 0]], [corpus.texts[d] for d in documents], gains


def measure(
    encode: Encoder, corpus: Corpus, *, prompts: bool = True, cranfield: Path | None = None
) -> dict[str, float]:
    """Measure a model on everything.

    Args:
        encode: texts to unit vectors.
        corpus: for the held-out pairs.
        prompts: put instructions before queries (the teacher knows none).
        cranfield: its file; left out while choosing between models.

    Returns:
        A value for each measure's name.
    """

    def ask(texts: Sequence[str], instruction: str) -> NDArray[np.float32]:
        return encode([format_query(text, instruction) if prompts else text for text in texts])

    result: dict[str, float] = {}
    sets = {
        "held-out code": (held_out_pairs(corpus, 1), CODE_INSTRUCTION),
        "held-out prose": (held_out_pairs(corpus, 0), DEFAULT),
        "held-out general": (held_out_pairs(corpus, 2), DEFAULT),
    }
    if cranfield:
        sets["Cranfield"] = (load_cranfield(cranfield), DEFAULT)
    for name, ((queries, documents, gains), instruction) in sets.items():
        q, d = ask(queries, instruction), encode(documents)
        for size in (None, 128, 64, 32):
            label = f"{name} nDCG@10" + (f" at {size}" if size else "")
            result[label] = ndcg(cut(q, size) @ cut(d, size).T, gains)
        result[f"{name} bare query nDCG@10"] = ndcg(encode(queries) @ d.T, gains)
        if instruction != DEFAULT:
            result[f"{name} web instruction nDCG@10"] = ndcg(ask(queries, DEFAULT) @ d.T, gains)

    functions = standard_library()
    names = [function.name for function in functions]
    library = encode([describe(function) for function in functions])
    questions = list(QUESTIONS)
    answers = [{names.index(a): 1.0 for a in QUESTIONS[q].split() if a in names} for q in questions]
    scores = ask(questions, CODE_INSTRUCTION) @ library.T
    result["standard library nDCG@10"] = ndcg(scores, answers)
    copytree = scores[0][names.index("shutil.copytree")]
    result["rank of shutil.copytree"] = float((scores[0] > copytree).sum() + 1)

    is_prose = corpus.pair_held_out & (corpus.pairs[:, 3] == 0)
    texts = [corpus.texts[i] for i in np.unique(corpus.pairs[is_prose][:, 1])]
    mixed = np.concatenate([library, encode(texts[:: max(1, len(texts) // len(functions))])])
    for name, instructions in INSTRUCTIONS.items():
        asked = np.concatenate([ask(questions, instruction) for instruction in instructions])
        top = np.argsort(-(asked @ mixed.T), axis=1)[:, :10]
        result[f"mixed, {name} instruction: code in the top 10"] = float((top < len(library)).mean())
    return result
