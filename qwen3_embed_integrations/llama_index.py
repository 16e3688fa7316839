"""Qwen3-Embedding for LlamaIndex."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import unwrap
from typing import TYPE_CHECKING, Any

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.node_parser import TextSplitter
    from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
    from llama_index.core.schema import BaseNode, Document, MetadataMode, TextNode
    from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore
    from llama_index.core.utils import get_tqdm_iterable
except ImportError as error:
    raise ImportError(
        "the LlamaIndex adapters need llama-index-core: pip install 'qwen3-embed-integrations[llama-index]'"
    ) from error
from pydantic import (
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError
from typing_extensions import Self

from qwen3_embed_integrations._adapters import (
    CHUNK_TOKENS,
    EncoderFields,
    Number,
    Size,
    TokenizerFields,
    checked_sizes,
    splitting_encoder,
)
from qwen3_embed_integrations.encoder import DEFAULT_MODEL, as_texts
from qwen3_embed_integrations.endpoint import EndpointError
from qwen3_embed_integrations.long_text import LEAST_TOKENS, visible

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from llama_index.core.callbacks import CallbackManager

    from qwen3_embed_integrations.encoder import Encoder
    from qwen3_embed_integrations.long_text import Span

logger = logging.getLogger(__name__)

_embedding_query: ContextVar[bool] = ContextVar("embedding_query", default=False)

# Settings of an encoder that change a document's vector, or whether it is refused, and that no fingerprint names.
_BESIDE_FINGERPRINT = ("long_text", "quantization", "base_url", "served_model_name")


class Qwen3Embedding(EncoderFields, BaseEmbedding):
    """Embeds with a Qwen3-Embedding model: queries with their instruction, texts as they are.

    The settings are those of `Qwen3Encoder`; an `encoder` can be given in their place. With `base_url` the model runs
    on a server (see `RemoteEncoder`), whose key is `api_key`, or else in the environment. LlamaIndex's `model_name` is
    taken for `model`. Keys in an `embeddings_cache` carry the encoder's fingerprint, and queries' keys their
    instruction as well, so that a cache can be shared by embeddings of different models or dimensions. An
    `IngestionPipeline` finds in its cache what an embedding of the same fingerprint, and of the same `long_text`,
    `quantization` and server, embedded before.

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

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Serialise it, with the encoder's fingerprint.

        Args:
            **kwargs: as in pydantic's `model_dump`.

        Returns:
            All that `from_dict` makes an equal embedding from. Written as a string, which is how LlamaIndex looks it up
            in an ingestion cache, it is only what changes a document's vector.

        Raises:
            FilesChangedError: the model's folder was written anew while this embedding used it.
        """
        try:
            data = super().to_dict(**kwargs)
        except PydanticSerializationError as error:
            raise error.__cause__ or error from None
        if data["fingerprint"] is None:
            return data
        settings = getattr(self.encoder, "settings", None)
        changes_vectors = {name: getattr(settings, name, None) for name in _BESIDE_FINGERPRINT}
        # The fingerprint, the name of the class, and what a derived class adds.
        changes_vectors |= {name: value for name, value in data.items() if name not in Qwen3Embedding.model_fields}
        return _Serialized(data, f"embedding with {changes_vectors}")

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an embedding from its serialised form.

        Args:
            data: what `to_dict` gave. Its fingerprint is not compared, for which the weights would have to be read:
                if they changed since then, the new embedding has another.
            **kwargs: settings to use instead.

        Returns:
            The embedding.
        """
        return super().from_dict({name: value for name, value in data.items() if name != "fingerprint"}, **kwargs)

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Write what LlamaIndex writes, and the fingerprint, also inside of other components.

        Args:
            handler: pydantic's own.
            info: as in pydantic.

        Returns:
            The fields, the fingerprint and the name of the class.
        """
        return {**handler(self), "fingerprint": self._fingerprint(), "class_name": self.class_name()}

    def _fingerprint(self) -> str | None:
        try:
            fingerprint: str = self.encoder.fingerprint
        except (OSError, EndpointError) as error:
            logger.warning(
                "%s is serialised without a fingerprint, which would name its weights: %s", self.model, error
            )
            return None
        return fingerprint

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


class Qwen3NodeParser(TokenizerFields, TextSplitter):
    """Cuts documents into nodes of at most so many tokens of a Qwen3-Embedding model, which overlap by so many.

    A node's text is exactly `text[start_char_idx:end_char_idx]`, white space included, and together they cover every
    visible character: as with `SentenceSplitter` there is no node of white space alone, none at all of a blank text,
    and an empty one of an empty text. They end at a paragraph, line, sentence or word where one is near. Only the
    tokenizer is loaded, not the weights. An `encoder` can be given in place of its settings.

    `chunk_size` is what the embedding reads: the end token counts, and so do the metadata before the text, if
    `include_metadata`. It is 1,024 by default, as in LlamaIndex, whose comparison of 128 to 2,048 tokens found it best
    for retrieval. `chunk_overlap`, unless it is given, is an eighth of it. Both can be assigned to, by `Settings` too.

    Example:
        >>> from llama_index.core import Document
        >>> from qwen3_embed_integrations.llama_index import Qwen3NodeParser
        >>> parser = Qwen3NodeParser(model="tiny", chunk_size=16, chunk_overlap=4)
        >>> text = "Copy a directory tree. Compute a square root. Parse the command line. Read a file."
        >>> nodes = parser.get_nodes_from_documents([Document(text=text)])
        >>> all(text[node.start_char_idx : node.end_char_idx] == node.text for node in nodes)
        True
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    chunk_size: Size = Field(default=CHUNK_TOKENS, description="Most tokens of a node, 16 or more.")
    chunk_overlap: Number = Field(
        default=None, description="Tokens shared with the node before: half of a node at most, an eighth by default."
    )

    @field_validator("encoder")
    @classmethod
    def _check_encoder(cls, encoder: Any) -> Any:
        return encoder if encoder is None else splitting_encoder(encoder, {}, None)

    @field_validator("id_func", mode="before")
    @classmethod
    def _default_id_func(cls, id_func: Any) -> Any:
        # What LlamaIndex writes for a function, which it does not read itself.
        if not isinstance(id_func, dict):
            return id_func
        if id_func.get("id_func_name") != default_id_func.__name__:
            raise ValueError("an id_func that was serialised by its name has to be passed again")
        return default_id_func

    @model_validator(mode="after")
    def _check_sizes(self) -> Any:
        self._resize(**self._given_sizes())
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("chunk_size", "chunk_overlap"):
            self._resize(**{**self._given_sizes(), name: value})
        else:
            super().__setattr__(name, value)

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """Copy it; where settings are updated, they are checked, and an overlap that was not given follows the size.

        Args:
            update: new values by field name.
            deep: whether to copy the other values too.

        Returns:
            The copy.

        Raises:
            TypeError: a size is not an integer.
            ValueError: a size is out of range, or settings are updated that the encoder does not have.
        """
        update = dict(update or {})
        sizes = {name: update.pop(name, value) for name, value in self._given_sizes().items()}
        copied = super().model_copy(update=update, deep=deep)
        copied._resize(**sizes)
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        # LlamaIndex makes a new one from the state, to which an overlap that is in it was given.
        state = super().__getstate__()
        values = dict(state["__dict__"])
        if "chunk_overlap" not in self.model_fields_set:
            del values["chunk_overlap"]
        return {**state, "__dict__": values}

    def _given_sizes(self) -> dict[str, int | None]:
        overlap = self.chunk_overlap if "chunk_overlap" in self.model_fields_set else None
        return {"chunk_size": self.chunk_size, "chunk_overlap": overlap}

    def _resize(self, *, chunk_size: Any, chunk_overlap: Any) -> None:
        size, overlap = checked_sizes(chunk_size=chunk_size, chunk_overlap=chunk_overlap)
        # Past the __setattr__ above, which comes here.
        self.__dict__.update(chunk_size=size, chunk_overlap=overlap)
        self.model_fields_set.update(("chunk_size", "chunk_overlap"))
        if chunk_overlap is None:
            self.model_fields_set.discard("chunk_overlap")

    @classmethod
    def from_defaults(
        cls,
        chunk_size: int = CHUNK_TOKENS,
        chunk_overlap: int | None = None,
        callback_manager: CallbackManager | None = None,
        include_metadata: bool = True,
        include_prev_next_rel: bool = True,
        **settings: Any,
    ) -> Self:
        """Make a parser as LlamaIndex's `from_defaults` do.

        Args:
            chunk_size: most tokens of a node, 16 or more.
            chunk_overlap: tokens shared with the node before; an eighth of chunk_size by default.
            callback_manager: as in LlamaIndex.
            include_metadata: whether the metadata are given to the nodes, and counted.
            include_prev_next_rel: whether nodes know their neighbours.
            **settings: the other fields, such as model.

        Returns:
            The parser.
        """
        if callback_manager is not None:
            settings["callback_manager"] = callback_manager
        return cls(
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            include_metadata=include_metadata,
            include_prev_next_rel=include_prev_next_rel,
            **settings,
        )

    @classmethod
    def class_name(cls) -> str:
        """Give the name under which LlamaIndex serialises it."""
        return "Qwen3NodeParser"

    def split_text(self, text: str) -> list[str]:
        """Cut a text into what would be the texts of its nodes, had it no metadata.

        Args:
            text: the text.

        Returns:
            The pieces in order.

        Raises:
            TypeError: text is not a string.
        """
        return [text[span.start : span.end] for span in self._visible_spans(text, self.chunk_size)]

    def split_texts(self, texts: list[str]) -> list[str]:
        """Cut texts, one after the other.

        Args:
            texts: the texts.

        Returns:
            The pieces of all texts in one list.

        Raises:
            TypeError: texts is a single string, or an item is not a string.
        """
        return super().split_texts(as_texts(texts))

    def get_nodes_from_documents(
        self, documents: Sequence[Document], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        """Cut documents, or nodes, into nodes.

        Args:
            documents: the documents, which stay as they are.
            show_progress: whether LlamaIndex draws its progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            The nodes in the order of the documents.

        Raises:
            TypeError: an item is not a document or a node with text.
            ValueError: the metadata of a document take too much of a node.
        """
        return super().get_nodes_from_documents(_as_nodes(documents), show_progress, **kwargs)

    async def aget_nodes_from_documents(
        self, documents: Sequence[Document], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        """Cut documents without blocking the event loop.

        Args:
            documents: the documents, which stay as they are.
            show_progress: whether LlamaIndex draws its progress bar.
            **kwargs: as in LlamaIndex.

        Returns:
            What `get_nodes_from_documents` returns.

        Raises:
            TypeError: an item is not a document or a node with text.
            ValueError: the metadata of a document take too much of a node.
        """
        return await super().aget_nodes_from_documents(_as_nodes(documents), show_progress, **kwargs)

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        rooms = [self._room(index, node) for index, node in enumerate(nodes)]
        parsed: list[BaseNode] = []
        for node, room in get_tqdm_iterable([*zip(nodes, rooms, strict=True)], show_progress, "Parsing nodes"):
            text = node.get_content(metadata_mode=MetadataMode.NONE)
            spans = self._spans(node, text, room)
            pieces = build_nodes_from_splits(
                [text[span.start : span.end] for span in spans], node, id_func=self.id_func
            )
            # A node that is cut again knows where its own text lies in the source that the pieces are given.
            offset = (getattr(node, "start_char_idx", None) or 0) if node.source_node else 0
            for piece, span in zip(pieces, spans, strict=True):
                piece.start_char_idx, piece.end_char_idx = offset + span.start, offset + span.end
            parsed += pieces
        return parsed

    async def _aparse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self._parse_nodes, nodes, show_progress, **kwargs)

    def _postprocess_parsed_nodes(self, nodes: list[BaseNode], parent_doc_map: dict[str, Document]) -> list[BaseNode]:
        # LlamaIndex looks for each node in the text, and finds the wrong place where the text repeats itself.
        pieces = [node for node in nodes if isinstance(node, TextNode)]
        places = [(piece.start_char_idx, piece.end_char_idx) for piece in pieces]
        nodes = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        for piece, (start, end) in zip(pieces, places, strict=True):
            piece.start_char_idx, piece.end_char_idx = start, end
        return nodes

    def _room(self, index: int, node: BaseNode) -> int:
        """Count the tokens that a document's metadata leave for a node's text."""
        room = self.chunk_size
        if self._has_metadata(node):
            (before, end) = self.encoder.count_tokens([_embedded(node, ""), ""])
            room -= before - end
        if room < LEAST_TOKENS:
            raise ValueError(
                f"the metadata of the document at index {index} leave {max(room, 0)} of chunk_size={self.chunk_size} "
                f"tokens for its text, which needs {LEAST_TOKENS}: name what is not to be embedded in "
                "excluded_embed_metadata_keys, or set include_metadata=False"
            )
        return room

    def _spans(self, node: BaseNode, text: str, room: int) -> list[Span]:
        while True:
            spans = self._visible_spans(text, room)
            if not spans or not self._has_metadata(node):
                return spans
            # Where the metadata's end and a text's beginning join, there may be a token more than in both.
            embedded = [_embedded(node, text[span.start : span.end]) for span in spans]
            over = max(self.encoder.count_tokens(embedded)) - self.chunk_size
            if over <= 0:
                return spans
            room -= over

    def _visible_spans(self, text: str, room: int) -> list[Span]:
        spans: list[Span] = self.encoder.split(text, room, min(self.chunk_overlap or 0, room // 2))
        return visible(text, spans) if text else spans

    def _has_metadata(self, node: BaseNode) -> bool:
        return self.include_metadata and bool(node.get_metadata_str(mode=MetadataMode.EMBED).strip())


def _as_nodes(documents: Iterable[Any]) -> list[Any]:
    documents = list(documents)
    for index, document in enumerate(documents):
        if not isinstance(document, (Document, TextNode)):
            raise TypeError(
                f"the item at index {index} must be a Document or a TextNode, got {type(document).__name__}"
            )
    return documents


def _embedded(node: Any, text: str) -> str:
    """Write a text with a node's metadata as LlamaIndex does before it embeds."""
    metadata = node.get_metadata_str(mode=MetadataMode.EMBED).strip()
    written: str = node.text_template.format(content=text, metadata_str=metadata).strip()
    return written


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


class _Serialized(dict[str, Any]):
    """A serialised form that is written as a string of its own.

    Args:
        data: the form.
        text: what `str` gives for it.
    """

    def __init__(self, data: dict[str, Any], text: str) -> None:
        super().__init__(data)
        self._text = text

    def __str__(self) -> str:
        return self._text


class _NamedKeys(BaseKVStore):
    """A key-value store in which each key carries what its vector depends on.

    Args:
        store: where the vectors are kept.
        encoder: whose vectors they are.
    """

    def __init__(self, store: BaseKVStore, encoder: Encoder) -> None:
        self.store = store
        self._encoder = encoder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NamedKeys) and self.store is other.store and self._encoder == other._encoder

    def __hash__(self) -> int:
        return id(self.store)

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
