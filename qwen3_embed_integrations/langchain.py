"""Qwen3-Embedding for LangChain."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, NoReturn

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_text_splitters import TextSplitter
except ImportError as error:
    raise ImportError(
        "the LangChain adapters need langchain-core and langchain-text-splitters: "
        "pip install 'qwen3-embed-integrations[langchain]'"
    ) from error
from pydantic import ConfigDict, SecretStr

from qwen3_embed_integrations._adapters import (
    CHUNK_TOKENS,
    EncoderFields,
    as_metadatas,
    checked_sizes,
    splitting_encoder,
)
from qwen3_embed_integrations._renamed import explains_names
from qwen3_embed_integrations.encoder import DEFAULT_MODEL, Qwen3Encoder, as_texts
from qwen3_embed_integrations.long_text import visible

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable


class Qwen3Embeddings(EncoderFields, Embeddings):
    """Embeds with a Qwen3-Embedding model: queries with their instruction, documents as they are.

    The settings are those of `Qwen3Encoder`; an `encoder` can be given in their place. With `base_url` the model runs
    on a server (see `RemoteEncoder`), whose key is `api_key`, or else in the environment. `show_progress` draws a
    progress bar over documents.

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


_OWN_TOKENIZER = (
    "Qwen3TextSplitter has no {}: chunks are counted with the tokenizer of the model that embeds them; name that "
    "model, Qwen3TextSplitter(model=..., chunk_size=...), or give its encoder, Qwen3TextSplitter(encoder=...)"
)


class Qwen3TextSplitter(TextSplitter):
    """Cuts texts into chunks of at most so many tokens of a Qwen3-Embedding model, which overlap by so many.

    A chunk is exactly `text[start:end]`, white space included, and together they cover every visible character: as with
    LangChain's own splitters there is no chunk of white space alone, and none at all of a blank text. They end at a
    paragraph, line, sentence or word where one is near. Only the tokenizer is loaded, not the weights.

    Args:
        model: "tiny", "0.6B", "4B" or "8B"; a hub id; or a folder with a model's files.
        encoder: an encoder whose tokenizer to use, instead of the settings that make one.
        chunk_size: most tokens of a chunk, the end token included; 16 or more. By default 1,024, as in LlamaIndex,
            whose comparison of 128 to 2,048 tokens found it best for retrieval.
        chunk_overlap: tokens that a chunk shares with the one before it, at least; at most half of chunk_size, an
            eighth of it by default.
        add_start_index: whether to tell in each chunk's metadata at which character of its text it begins.
        revision: branch, tag or commit on the hub.
        cache_folder: where the hub's files are kept.
        local_files_only: never ask the network.
        token: access token of the hub for private models.

    Raises:
        TypeError: a setting has the wrong type, or encoder is no `Qwen3Encoder`.
        ValueError: a setting is out of range or has no effect beside encoder.

    Example:
        >>> from langchain_core.documents import Document
        >>> from qwen3_embed_integrations.langchain import Qwen3TextSplitter
        >>> splitter = Qwen3TextSplitter("tiny", chunk_size=16, chunk_overlap=4, add_start_index=True)
        >>> text = "Copy a directory tree. Compute a square root. Parse the command line. Read a file."
        >>> chunks = splitter.split_documents([Document(text, metadata={"source": "manual"})])
        >>> all(text.startswith(chunk.page_content, chunk.metadata["start_index"]) for chunk in chunks)
        True
    """

    @explains_names
    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        encoder: Qwen3Encoder | None = None,
        chunk_size: int = CHUNK_TOKENS,
        chunk_overlap: int | None = None,
        add_start_index: bool = False,
        revision: str | None = None,
        cache_folder: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: SecretStr | str | None = None,
    ) -> None:
        chunk_size, chunk_overlap = checked_sizes(chunk_size=chunk_size, chunk_overlap=chunk_overlap)
        settings: dict[str, Any] = {
            "model": model,
            "revision": revision,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        token = token.get_secret_value() if isinstance(token, SecretStr) else token
        self.encoder = splitting_encoder(encoder, settings, token)
        super().__init__(
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            length_function=self._count_tokens,
            add_start_index=add_start_index,
            strip_whitespace=False,
        )

    @classmethod
    def from_huggingface_tokenizer(cls, tokenizer: Any, **kwargs: Any) -> NoReturn:
        """Refuse another tokenizer: chunks are counted with the model's own.

        Args:
            tokenizer: any.
            **kwargs: any.

        Raises:
            ValueError: always, with what to do instead.
        """
        raise ValueError(_OWN_TOKENIZER.format("from_huggingface_tokenizer"))

    @classmethod
    def from_tiktoken_encoder(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse OpenAI's tokens: chunks are counted in the model's own.

        Args:
            *args: any.
            **kwargs: any.

        Raises:
            ValueError: always, with what to do instead.
        """
        raise ValueError(_OWN_TOKENIZER.format("from_tiktoken_encoder"))

    def split_text(self, text: str) -> list[str]:
        """Cut a text into chunks.

        Args:
            text: the text.

        Returns:
            The chunks in order; none of a text without a visible character.

        Raises:
            TypeError: text is not a string.
        """
        return [chunk for _, chunk in self._chunks(text)]

    def create_documents(self, texts: list[str], metadatas: list[dict[Any, Any]] | None = None) -> list[Document]:
        """Cut texts into chunks with their metadata.

        Args:
            texts: the texts.
            metadatas: one dictionary per text, of which each chunk gets a copy.

        Returns:
            The chunks in the order of the texts, with `start_index` where it was asked for.

        Raises:
            TypeError: texts is a single string, an item is not a string, or one of metadatas not a dictionary.
            ValueError: there are more or fewer metadatas than texts.
        """
        texts = as_texts(texts)
        metadatas = [{}] * len(texts) if metadatas is None else as_metadatas(metadatas)
        if len(metadatas) != len(texts):
            raise ValueError(f"metadatas must be one per text, got {len(metadatas)} for {len(texts)} texts")
        # The base class looks for each chunk in the text, and finds the wrong place where the text repeats itself.
        return [
            Document(
                chunk, metadata={**deepcopy(metadata), **({"start_index": start} if self._add_start_index else {})}
            )
            for text, metadata in zip(texts, metadatas, strict=True)
            for start, chunk in self._chunks(text)
        ]

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """Cut documents into chunks with their metadata.

        Args:
            documents: the documents, which stay as they are.

        Returns:
            What `create_documents` returns.

        Raises:
            TypeError: an item is not a document.
        """
        documents = list(documents)
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise TypeError(
                    f"the item at index {index} must be a Document, got {type(document).__name__}; "
                    "to split strings, use create_documents"
                )
        return super().split_documents(documents)

    def _chunks(self, text: str) -> list[tuple[int, str]]:
        spans = visible(text, self.encoder.split(text, self._chunk_size, self._chunk_overlap))
        return [(span.start, text[span.start : span.end]) for span in spans]

    def _count_tokens(self, text: str) -> int:
        return self.encoder.count_tokens([text])[0]


def __getattr__(name: str) -> Any:
    # The store needs FAISS, which nothing else here does.
    if name == "Qwen3VectorStore":
        from qwen3_embed_integrations.langchain_store import Qwen3VectorStore

        return Qwen3VectorStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
