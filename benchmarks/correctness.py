"""What the frameworks' generic Hugging Face wrappers do to a vector, against plain transformers.

Run: python -m benchmarks.correctness FOLDER, with langchain-huggingface and llama-index-embeddings-huggingface
installed. FOLDER receives a random-weight model in the shape of the 0.6B (1.2 GB).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from langchain_huggingface import HuggingFaceEmbeddings
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from transformers import AutoModel, AutoTokenizer

from qwen3_embed_integrations import format_query
from qwen3_embed_integrations.bench.random_model import make
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.llama_index import Qwen3Embedding

QUERY = "how do I read a csv file?"
CODE = "def read(path):\n    with open(path) as file:\n        return list(csv.reader(file))\n"
FLOAT32 = {"dtype": torch.float32}


def main(folder: Path) -> None:
    """Print a table in Markdown.

    Args:
        folder: where the random-weight model is, or goes.
    """
    model = str(make(folder))
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModel.from_pretrained(model, dtype=torch.float32)

    def right(text: str) -> np.ndarray:
        with torch.inference_mode():
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1].numpy()
        return hidden / np.linalg.norm(hidden)

    def row(what: str, theirs: float, ours: float) -> None:
        print(f"| {what} | {theirs:.4f} | {ours:.6f} |")

    query, code = right(format_query(QUERY)), right(CODE)
    settings = {"model": model, "dtype": "float32", "device": "cpu"}
    langchain = HuggingFaceEmbeddings(model_name=model, model_kwargs={"device": "cpu", "model_kwargs": FLOAT32})
    cut = HuggingFaceEmbeddings(
        model_name=model, model_kwargs={"device": "cpu", "truncate_dim": 256, "model_kwargs": FLOAT32}
    )
    llama_index = HuggingFaceEmbedding(model_name=model, device="cpu", model_kwargs=FLOAT32)
    ours, ours_cut = Qwen3Embeddings(**settings), Qwen3Embeddings(**settings, dimensions=256)
    print("| measured | generic wrapper | this package |\n|---|---|---|")
    row(
        "LangChain, a query: cosine to the right vector",
        langchain.embed_query(QUERY) @ query,
        ours.embed_query(QUERY) @ query,
    )
    row(
        "LangChain, code with newlines: cosine to the right vector",
        langchain.embed_documents([CODE])[0] @ code,
        ours.embed_documents([CODE])[0] @ code,
    )
    row(
        "LangChain, cut to 256 dimensions: length of the vector",
        float(np.linalg.norm(cut.embed_query(QUERY))),
        float(np.linalg.norm(ours_cut.embed_query(QUERY))),
    )
    row(
        "LlamaIndex, a query: cosine to the right vector",
        llama_index.get_query_embedding(QUERY) @ query,
        Qwen3Embedding(**settings).get_query_embedding(QUERY) @ query,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
