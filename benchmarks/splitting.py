"""Windows of a long text beside the frameworks' generic splitters, with the same tokenizer.

Run: python -m benchmarks.splitting [MEGABYTES], with langchain-text-splitters and llama-index-core installed. The text
is Python's own standard library, repeated until it is that long.
"""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from langchain_text_splitters import RecursiveCharacterTextSplitter
from llama_index.core.node_parser import SentenceSplitter
from transformers import AutoTokenizer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.models import TINY_FOLDER

MAX_TOKENS, OVERLAP_TOKENS = 1024, 128


def sources(characters: int) -> str:
    """Give the standard library's modules one after the other, as often as needed."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = "\n\n".join(path.read_text(encoding="utf-8") for path in paths)
    return (whole * (characters // len(whole) + 1))[:characters]


def main(megabytes: float) -> None:
    """Print a table in Markdown.

    Args:
        megabytes: millions of characters.
    """
    text = sources(int(megabytes * 1e6))
    encoder = Qwen3Encoder("tiny")
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    # The generic splitters know of no end token.
    sizes = {"chunk_size": MAX_TOKENS - 1, "chunk_overlap": OVERLAP_TOKENS}

    def own() -> list[str]:
        spans = encoder.split(text, MAX_TOKENS, OVERLAP_TOKENS)
        return [text[span.start : span.end] for span in spans]

    def langchain() -> list[str]:
        return RecursiveCharacterTextSplitter.from_huggingface_tokenizer(tokenizer, **sizes).split_text(text)

    def llama_index() -> list[str]:
        def encode(part: str) -> list[int]:
            ids: list[int] = tokenizer.encode(part, add_special_tokens=False)
            return ids

        return SentenceSplitter(tokenizer=encode, **sizes).split_text(text)

    splitters: dict[str, Callable[[], list[str]]] = {
        "this package": own,
        "LangChain, RecursiveCharacterTextSplitter": langchain,
        "LlamaIndex, SentenceSplitter": llama_index,
    }
    encoder.count_tokens(["warm"])
    print(f"| {megabytes:g} million characters | seconds | pieces | over {MAX_TOKENS} tokens | longest |")
    print("|---|---|---|---|---|")
    for name, splitter in splitters.items():
        start = time.perf_counter()
        pieces = splitter()
        seconds = time.perf_counter() - start
        counts = encoder.count_tokens(pieces)
        over = sum(count > MAX_TOKENS for count in counts)
        print(f"| {name} | {seconds:.1f} | {len(pieces)} | {over} | {max(counts)} |", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
