"""Qwen3-Embedding for LlamaIndex."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from inspect import unwrap
from typing import TYPE_CHECKING, Any

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore
except ImportError as error:
    raise ImportError(
        "Qwen3Embedding needs llama-index-core: pip install 'qwen3-embed-integrations[llama-index]'"
    ) from error
from pydantic import ConfigDict, Field, model_validator

from qwen3_embed_integrations._adapters import EncoderFields
from qwen3_embed_integrations.encoder import DEFAULT_MODEL, as_texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from qwen3_embed_integrations.encoder import Encoder

_embedding_query: ContextVar[bool] = ContextVar("embedding_query", default=False)


class Qwen3Embedding(EncoderFields, BaseEmbedding):
    """Embeds with a Qwen3-Embedding model: queries with their instruction, texts as they are.

    The settings are those of `Qwen3Encoder`; an `encoder` can be given in their place. LlamaIndex's `model_name` is
    taken for `model`. Keys in an `embeddings_cache` carry the encoder's fingerprint, and queries' keys their
    instruction as well, so that a cache can be shared by embeddings of different models or dimensions.

    Example:
        >>> from llama_index.core import Document, VectorStoreIndex
        >>> from qwen3_embed_integrations.llama_index import Qwen3Embedding
        >>> documents = [Document(text="Copy a directory tree."), Document(text="Compute a square root.")]
        >>> index = VectorStoreIndex.from_documents(documents, embed_model=Qwen3Embedding(model="tiny"))
        >>> index.as_retriever(similarity_top_k=1).retrieve("how do I copy a folder?")[0].text
        'Copy a directory tree.'
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    model_name: str = Field(default=DEFAULT_MODEL, frozen=True, description="LlamaIndex's name for `model`.")
    embed_batch_size: int = Field(
        default=2048,
        gt=0,
        le=2048,
        description="Texts that LlamaIndex hands over at once; the encoder groups them by length itself.",
    )

    @model_validator(mode="before")
    @classmethod
    def _model_from_model_name(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("model_name")
        if name is None:
            return data
        if data.get("model", name) != name:
            raise ValueError(f"model={data['model']!r} and model_name={name!r} differ: give one of them")
        return {**data, "model": name}

    @model_validator(mode="after")
    def _follow_encoder(self) -> Any:
        self.__dict__["model_name"] = self.model
        self.embeddings_cache = self.embeddings_cache
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "embeddings_cache" and value is not None:
            value = _NamedKeys(value.store if isinstance(value, _NamedKeys) else value, self.encoder)
        super().__setattr__(name, value)

    @classmethod
    def class_name(cls) -> str:
        """Give the name under which LlamaIndex serialises it."""
        return "Qwen3Embedding"

    def get_query_embedding(self, query: str) -> list[float]:
        """Embed a query with the query instruction.

        Args:
            query: the query.

        Returns:
            A list of `dimensions` floats, unit length.
        """
        with _for_query():
            return _get_query_embedding(self, query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """Embed a query without blocking the event loop.

        Args:
            query: the query.

        Returns:
            What `get_query_embedding` returns.
        """
        with _for_query():
            return await _aget_query_embedding(self, query)

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Embed texts; LlamaIndex hands them over in pieces, so all are checked first.

        Args:
            texts: the texts.
            show_progress: whether LlamaIndex draws its progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            One vector a text, each a list of `dimensions` floats, unit length.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
        """
        return _get_text_embedding_batch(self, as_texts(texts), show_progress, **kwargs)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Embed texts without blocking the event loop.

        Args:
            texts: the texts.
            show_progress: whether LlamaIndex draws its progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            What `get_text_embedding_batch` returns.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
        """
        return await _aget_text_embedding_batch(self, as_texts(texts), show_progress, **kwargs)

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self.encoder.encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = (await self.encoder.aencode_queries([query]))[0].tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_documents(texts, show_progress=self.show_progress).tolist()
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = (await self.encoder.aencode_documents(texts)).tolist()
        return vectors


# The base class's methods without its tracing, which LlamaIndex puts around the methods above already.
_get_query_embedding: Callable[..., list[float]] = unwrap(BaseEmbedding.get_query_embedding)
_aget_query_embedding: Callable[..., Awaitable[list[float]]] = unwrap(BaseEmbedding.aget_query_embedding)
_get_text_embedding_batch: Callable[..., list[list[float]]] = unwrap(BaseEmbedding.get_text_embedding_batch)
_aget_text_embedding_batch: Callable[..., Awaitable[list[list[float]]]] = unwrap(
    BaseEmbedding.aget_text_embedding_batch
)


@contextmanager
def _for_query() -> Iterator[None]:
    """Mark the cache look-ups inside as those of a query: LlamaIndex itself uses the bare text as key for both."""
    token = _embedding_query.set(True)
    try:
        yield
    finally:
        _embedding_query.reset(token)


class _NamedKeys(BaseKVStore):
    """A key-value store in which each key carries what its vector depends on.

    Args:
        store: where the vectors are kept.
        encoder: whose vectors they are.
    """

    def __init__(self, store: BaseKVStore, encoder: Encoder) -> None:
        self.store = store
        self._encoder = encoder

    def _key(self, key: str) -> str:
        if not _embedding_query.get():
            return f"{self._encoder.fingerprint}:{key}"
        namespace = getattr(self._encoder, "query_fingerprint", f"{self._encoder.fingerprint}.query")
        return f"{namespace}:{key}"

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self.store.put(self._key(key), val, collection)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        await self.store.aput(self._key(key), val, collection)

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return self.store.get(self._key(key), collection)

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return await self.store.aget(self._key(key), collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return await self.store.aget_all(collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return self.store.delete(self._key(key), collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return await self.store.adelete(self._key(key), collection)
