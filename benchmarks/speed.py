"""This package beside LangChain's wrapper, on random weights in the shape of the 0.6B.

Run: python -m benchmarks.speed FOLDER, with langchain-huggingface installed and nothing else running. FOLDER receives
the model (1.2 GB). Each round measures every engine, one after the other; the medians of the rounds count.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from langchain_huggingface import HuggingFaceEmbeddings

from benchmarks.random_model import make
from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.instructions import query_prompt

SENTENCE = "retrieval of passages with embeddings from a large language model running on small machines in production"
ROUNDS = 3


def texts() -> tuple[list[str], list[str]]:
    """Give 32 queries of 8 words and 24 documents of log-normal length, always the same."""
    random = np.random.default_rng(0)
    words = SENTENCE.split()
    queries = [" ".join(random.choice(words, 8)) for _ in range(32)]
    lengths = random.lognormal(4.6, 0.7, 24).clip(10, 400)
    return queries, [" ".join(random.choice(words, int(length))) for length in lengths]


def seconds(call: Callable[[], object]) -> float:
    """Time a call: the median of as many as take two seconds, after one that brings its weights back into memory."""
    call()
    times: list[float] = []
    while sum(times) < 2:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(folder: Path) -> None:
    """Print a table in Markdown: seconds, and how many times faster than the wrapper.

    Args:
        folder: where the random-weight model is, or goes.
    """
    model = str(make(folder))
    queries, documents = texts()
    prompt = query_prompt("web_search")
    peer = HuggingFaceEmbeddings(
        model_name=model,
        model_kwargs={"device": "cpu", "model_kwargs": {"dtype": torch.bfloat16}},
        query_encode_kwargs={"prompt": prompt},
    )
    engines = {
        "bfloat16": Qwen3Encoder(model, device="cpu", dtype="bfloat16"),
        "int8": Qwen3Encoder(model, device="cpu", dtype="bfloat16", quantization="int8"),
    }
    cases: dict[str, Callable[[str], Callable[[], object]]] = {
        "1 query": lambda name: (
            (lambda: peer.embed_query(queries[0]))
            if name == "wrapper"
            else (lambda: engines[name].encode_queries(queries[:1]))
        ),
        "32 queries": lambda name: (
            (lambda: peer._client.encode(queries, prompt=prompt, batch_size=32))
            if name == "wrapper"
            else (lambda: engines[name].encode_queries(queries))
        ),
        "24 documents": lambda name: (
            (lambda: peer.embed_documents(documents))
            if name == "wrapper"
            else (lambda: engines[name].encode_documents(documents))
        ),
    }
    names = ["wrapper", *engines]
    print(f"| median of {ROUNDS}, s | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for case, call in cases.items():
        rounds = [[seconds(call(name)) for name in names] for _ in range(ROUNDS)]
        medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
        shown = [f"{medians[0]:.3f}", *(f"{median:.3f} ({medians[0] / median:.1f}x)" for median in medians[1:])]
        print(f"| {case} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
