"""The demonstration: search the documentation of Python's standard library through each framework's own store."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qwen3_embed_integrations.encoder import BaseEncoder, Qwen3Encoder
from qwen3_embed_integrations.instructions import Prompts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

QUESTIONS = (
    "how do I read a csv file",
    "copy a whole directory tree",
    "run a command and capture what it prints",
    "parse command line arguments",
    "compress data with gzip",
)

# Not documentation that a user of the library would search.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "turtledemo"}


@dataclass(frozen=True)
class Entry:
    """A public function or class of the standard library.

    Attributes:
        name: with its module, "shutil.copytree".
        signature: "(src, dst, ...)".
        documentation: its docstring, or "".
    """

    name: str
    signature: str
    documentation: str

    @property
    def text(self) -> str:
        """What is embedded."""
        return f"{self.name}{self.signature}\n{self.documentation}".strip()

    @property
    def first_line(self) -> str:
        """The first line of its docstring, or its signature where it has none."""
        return self.documentation.split("\n", 1)[0] or self.signature


@dataclass(frozen=True)
class Hit:
    """A text that was found.

    Attributes:
        name: the entry's name.
        score: cosine similarity to the question.
    """

    name: str
    score: float


Search = Callable[[str], list[Hit]]


def standard_library(folder: Path | None = None) -> list[Entry]:
    """Read the public functions and classes of the standard library from its sources, without importing them.

    Args:
        folder: where the sources are; None for those of the running interpreter.

    Returns:
        One entry a function or class that stands at the top of a public module, by module and place.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    return [entry for path in sorted(root.rglob("*.py")) for entry in _entries(path, path.relative_to(root))]


def _entries(path: Path, relative: Path) -> Iterator[Entry]:
    parts = relative.with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    if not parts or _LEFT_OUT.intersection(parts) or not all(part.isidentifier() and part[0] != "_" for part in parts):
        return
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield Entry(".".join([*parts, node.name]), _signature(node), ast.get_docstring(node) or "")


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if not isinstance(node, ast.ClassDef):
        return f"({ast.unparse(node.args)})"
    made_by = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    if not made_by:
        return "()"
    arguments = ast.unparse(made_by[0].args)
    return f"({arguments.removeprefix('self').removeprefix(', ')})"


class EmbeddedOnce(BaseEncoder):
    """An encoder that has the documents' vectors already, so that three frameworks can index them at no cost.

    Args:
        encoder: embeds the documents now, and queries later.
        texts: all documents that will be asked for.
    """

    def __init__(self, encoder: Qwen3Encoder, texts: Sequence[str]) -> None:
        super().__init__(None, None)
        self._encoder = encoder
        self._vectors = dict(zip(texts, encoder.encode_documents(texts, show_progress=True), strict=True))

    @property
    def dimensions(self) -> int:
        """Components of the vectors."""
        return self._encoder.dimensions

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read at most."""
        return self._encoder.max_tokens

    @property
    def fingerprint(self) -> str:
        """Names the vector space."""
        return self._encoder.fingerprint

    def count_tokens(self, texts: Iterable[str]) -> list[int]:
        """Count each text's tokens, the end token included."""
        return self._encoder.count_tokens(texts)

    def _default_prompts(self) -> Prompts:
        return Prompts(self._encoder._query_prompt, "")

    def _encode(self, texts: list[str], prompt: str, show_progress: bool) -> NDArray[np.float32]:
        if prompt:
            return self._encoder._encode(texts, prompt, show_progress)
        return np.stack([self._vectors[text] for text in texts])


def langchain_search(encoder: EmbeddedOnce, entries: Sequence[Entry], count: int) -> Search:
    """Index entries in LangChain's InMemoryVectorStore.

    Args:
        encoder: has their vectors.
        entries: what to index.
        count: how many to find.

    Returns:
        A function from a question to the best hits.
    """
    from langchain_core.vectorstores import InMemoryVectorStore

    from qwen3_embed_integrations.langchain import Qwen3Embeddings

    store = InMemoryVectorStore(Qwen3Embeddings(encoder=encoder))
    store.add_texts([entry.text for entry in entries], [{"name": entry.name} for entry in entries])

    def search(question: str) -> list[Hit]:
        found = store.similarity_search_with_score(question, k=count)
        return [Hit(document.metadata["name"], score) for document, score in found]

    return search


def llama_index_search(encoder: EmbeddedOnce, entries: Sequence[Entry], count: int) -> Search:
    """Index entries in LlamaIndex's VectorStoreIndex.

    Args:
        encoder: has their vectors.
        entries: what to index.
        count: how many to find.

    Returns:
        A function from a question to the best hits.
    """
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from qwen3_embed_integrations.llama_index import Qwen3Embedding

    nodes = [
        TextNode(text=entry.text, metadata={"name": entry.name}, excluded_embed_metadata_keys=["name"])
        for entry in entries
    ]
    index = VectorStoreIndex(nodes, embed_model=Qwen3Embedding(encoder=encoder))
    retriever = index.as_retriever(similarity_top_k=count)

    def search(question: str) -> list[Hit]:
        return [Hit(hit.node.metadata["name"], hit.get_score()) for hit in retriever.retrieve(question)]

    return search


def haystack_search(encoder: EmbeddedOnce, entries: Sequence[Entry], count: int) -> Search:
    """Index entries in Haystack's InMemoryDocumentStore, and search it through a pipeline.

    Args:
        encoder: has their vectors.
        entries: what to index.
        count: how many to find.

    Returns:
        A function from a question to the best hits.
    """
    from haystack import Document, Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(content=entry.text, meta={"name": entry.name}) for entry in entries]
    embedder = Qwen3DocumentEmbedder(encoder=encoder, progress_bar=False)
    store.write_documents(embedder.run(documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", Qwen3TextEmbedder(encoder=encoder))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=count))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")

    def search(question: str) -> list[Hit]:
        found = pipeline.run({"embedder": {"text": question}})["retriever"]["documents"]
        return [Hit(document.meta["name"], document.score) for document in found]

    return search


FRAMEWORKS: dict[str, tuple[str, str, Callable[[EmbeddedOnce, Sequence[Entry], int], Search]]] = {
    "LangChain": ("langchain_core", "langchain", langchain_search),
    "LlamaIndex": ("llama_index", "llama-index", llama_index_search),
    "Haystack": ("haystack", "haystack", haystack_search),
}
"""By name: the module that has to be there, the extra that brings it, and how to index with it."""


@dataclass(frozen=True)
class Demo:
    """The standard library, embedded once and indexed by each installed framework.

    Attributes:
        entries: by name, what was indexed.
        searches: by framework, how to search.
        missing: frameworks that are not installed, with the extra that brings each.
        tokens: of all texts together.
        seconds: that embedding took, loading the model included.
    """

    entries: dict[str, Entry]
    searches: dict[str, Search]
    missing: dict[str, str]
    tokens: int
    seconds: float


def build(encoder: Qwen3Encoder, count: int = 5) -> Demo:
    """Embed the standard library and index it with each framework that is installed.

    Args:
        encoder: what to embed with.
        count: how many texts a search finds.

    Returns:
        What there is to search.
    """
    entries = list({entry.text: entry for entry in standard_library()}.values())
    texts = [entry.text for entry in entries]
    start = time.perf_counter()
    embedded = EmbeddedOnce(encoder, texts)
    seconds = time.perf_counter() - start
    installed = {name for name, (module, _, _) in FRAMEWORKS.items() if importlib.util.find_spec(module)}
    return Demo(
        entries={entry.name: entry for entry in entries},
        searches={name: FRAMEWORKS[name][2](embedded, entries, count) for name in FRAMEWORKS if name in installed},
        missing={name: extra for name, (_, extra, _) in FRAMEWORKS.items() if name not in installed},
        tokens=sum(encoder.count_tokens(texts)),
        seconds=seconds,
    )
