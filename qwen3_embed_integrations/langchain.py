"""Qwen3-Embedding for LangChain."""

from __future__ import annotations

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ImportError(
        "Qwen3Embeddings needs langchain-core: pip install 'qwen3-embed-integrations[langchain]'"
    ) from error
from pydantic import ConfigDict

from qwen3_embed_integrations._adapters import EncoderFields


class Qwen3Embeddings(EncoderFields, Embeddings):
    """Embeds with a Qwen3-Embedding model: queries with their instruction, documents as they are.

    The settings are those of `Qwen3Encoder`; an `encoder` can be given in their place. `show_progress` draws a progress
    bar over documents.

    Example:
        >>> from langchain_core.vectorstores import InMemoryVectorStore
        >>> from qwen3_embed_integrations.langchain import Qwen3Embeddings
        >>> store = InMemoryVectorStore(Qwen3Embeddings(model="tiny"))
        >>> ids = store.add_texts(["Copy a directory tree.", "Compute a square root."])
        >>> store.similarity_search("how do I copy a folder?", k=1)[0].page_content
        'Copy a directory tree.'
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: the documents.

        Returns:
            One vector a document, each a list of `dimensions` floats, unit length.
        """
        vectors: list[list[float]] = self.encoder.encode_documents(texts, show_progress=self.show_progress).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Embed a query with the query instruction.

        Args:
            text: the query.

        Returns:
            A list of `dimensions` floats, unit length.
        """
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop.

        Args:
            texts: the documents.

        Returns:
            What `embed_documents` returns.
        """
        vectors: list[list[float]] = (await self.encoder.aencode_documents(texts)).tolist()
        return vectors

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop.

        Args:
            text: the query.

        Returns:
            What `embed_query` returns.
        """
        vector: list[float] = (await self.encoder.aencode_queries([text]))[0].tolist()
        return vector
