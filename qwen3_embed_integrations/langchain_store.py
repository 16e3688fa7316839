"""A LangChain vector store over a two-stage FAISS index.

langchain-community has a store for FAISS, but that package is no longer developed, its store is loaded from a pickle,
which can run any code, and it cannot delete from a graph. This one does what LangChain asks of a vector store, keeps
the texts as JSON, and refuses an index of another encoder.
"""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

try:
    from langchain_core.documents import Document
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise ImportError(
        "the LangChain vector store needs langchain-core: pip install 'qwen3-embed-integrations[langchain,faiss]'"
    ) from error

from qwen3_embed_integrations._adapters import as_metadatas
from qwen3_embed_integrations.encoder import as_texts
from qwen3_embed_integrations.index_file import (
    DamagedIndexError,
    FingerprintError,
    check_index,
    read_index,
    write_atomically,
    write_index,
)
from qwen3_embed_integrations.matryoshka import as_integer, import_faiss, two_stage_index
from qwen3_embed_integrations.metadata_filter import Columns, compiled, plain

if TYPE_CHECKING:
    import os

    import faiss
    from langchain_core.embeddings import Embeddings
    from numpy.typing import NDArray
    from typing_extensions import Self

    from qwen3_embed_integrations.vector_rows import VectorRows

    Filter = Callable[[Document], bool] | Mapping[str, Any]

logger = logging.getLogger(__name__)

# What LangChain's indexing and its time-weighted retriever pass to every store.
_PASSED_WHEN_ADDING = ("batch_size", "current_time")
# What a retriever's search_kwargs hold for other kinds of search.
_PASSED_WHEN_SEARCHING = ("score_threshold", "fetch_k", "lambda_mult")


class Qwen3VectorStore(VectorStore):
    """Documents with their vectors in a FAISS index, by default one that searches in two stages.

    A search finds as many documents as it is asked for, or as there are, best first. Scores are cosines: 1 is the same
    direction. Few documents, and few that a filter lets through, are all scored; among many a graph finds candidates.
    A deleted or replaced document is never found again; once more are deleted than are left, the index is built anew.
    Many threads may use one store. A copy or a pickle is a store of its own, as this one was at that moment.

    A filter is a function from a document, which it must leave as it is, to whether it may be found, which is asked
    about every document, or a dictionary: `{"source": "a.md"}`, `{"source": ["a.md", "b.md"]}`,
    `{"year": {"$gte": 2020, "$lt": 2024}}`, `{"$or": [{...}, {...}]}`. The operators are $eq, $ne, $gt, $gte, $lt,
    $lte, $in, $nin, $and, $or and $not; a document without the field passes only $ne, $nin and $not. A list is $in.

    Metadata are kept as plain values that JSON holds: dates and times as ISO 8601, in UTC if they have a zone, UUIDs,
    paths and enums as their strings and values, numpy's numbers and arrays as numbers and lists, tuples as lists;
    others are refused.

    Args:
        embedding: makes the vectors; to save the store it has to be one of this package, or
            `CacheBackedEmbeddings` around one, which caches queries only if these have a cache of their own.
        index: an empty index of inner products for them, of which each vector can be read back; None for
            `two_stage_index` with its defaults.

    Raises:
        ImportError: FAISS is not installed.
        TypeError: there is no index, and embedding is none of this package, which would know its dimensions.
        ValueError: the index is not empty, its scores are not inner products, or it gives no vector back.

    Example:
        >>> from qwen3_embed_integrations.langchain import Qwen3Embeddings
        >>> from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
        >>> store = Qwen3VectorStore(Qwen3Embeddings(model="tiny"))
        >>> ids = store.add_texts(["Copy a directory tree.", "Compute a square root."])
        >>> store.similarity_search("how do I copy a folder?", k=1)[0].page_content
        'Copy a directory tree.'
    """

    def __init__(self, embedding: Embeddings, index: faiss.Index | None = None) -> None:
        index = two_stage_index(_encoder_of(embedding).dimensions) if index is None else index
        from qwen3_embed_integrations.vector_rows import VectorRows

        self._start(embedding, VectorRows(index), {})

    def _start(self, embedding: Embeddings, vectors: VectorRows, documents: dict[int, Document]) -> None:
        self._embedding, self._of_queries = embedding, _for_queries(embedding)
        # FAISS allows no search while a vector is added.
        self._lock = threading.Lock()
        self._fill(vectors, documents)

    def _fill(self, vectors: VectorRows, documents: dict[int, Document]) -> None:
        """Take over rows, and the documents of those that are alive, in the order of the rows."""
        rows = {str(document.id): row for row, document in documents.items()}
        columns = Columns()
        for row, document in documents.items():
            columns.put(row, document.metadata)
        # At once, so that an interrupt leaves one state or the other.
        self._vectors, self._documents, self._rows, self._columns = vectors, documents, rows, columns

    def _hold(self, row: int, document: Document) -> None:
        self._documents[row] = document
        self._rows[str(document.id)] = row
        self._columns.put(row, document.metadata)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            # The index's bytes, so that a copy shares no index with this store, which others may be adding to.
            index = import_faiss().serialize_index(self._vectors.index)
            return {"embedding": self._embedding, "index": index, "documents": dict(self._documents)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state["embedding"], import_faiss().deserialize_index(state["index"]), state["documents"])

    def _restore(self, embedding: Embeddings, index: faiss.Index, documents: dict[int, Document]) -> None:
        from qwen3_embed_integrations.vector_rows import VectorRows

        self._start(embedding, VectorRows.of_saved(index, np.array([*documents], dtype=np.int64)), documents)

    def __len__(self) -> int:
        return len(self._rows)

    def __bool__(self) -> bool:
        # An empty store is no missing one, where someone writes `store or ...`.
        return True

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    @property
    def index(self) -> faiss.Index:
        """The FAISS index, for its settings; add to it through the store only."""
        index: faiss.Index = self._vectors.index
        return index

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts.

        Args:
            texts: the texts.
            embedding: makes the vectors.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.
            **kwargs: `index`, as in the constructor.

        Returns:
            The store.
        """
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts without blocking the event loop.

        Args:
            texts: the texts.
            embedding: makes the vectors.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.
            **kwargs: `index`, as in the constructor.

        Returns:
            The store.
        """
        store = cls(embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_documents(cls, documents: Iterable[Document], embedding: Embeddings, **kwargs: Any) -> Self:
        """Make a store of documents.

        Args:
            documents: what to add; they stay as they are.
            embedding: makes the vectors.
            **kwargs: `ids`, as for `add_documents`, and `index`, as in the constructor.

        Returns:
            The store.
        """
        ids = kwargs.pop("ids", None)
        store = cls(embedding, **kwargs)
        store.add_documents(documents, ids)
        return store

    @classmethod
    async def afrom_documents(cls, documents: Iterable[Document], embedding: Embeddings, **kwargs: Any) -> Self:
        """Make a store of documents without blocking the event loop.

        Args:
            documents: what to add; they stay as they are.
            embedding: makes the vectors.
            **kwargs: `ids`, as for `add_documents`, and `index`, as in the constructor.

        Returns:
            The store.
        """
        ids = kwargs.pop("ids", None)
        store = cls(embedding, **kwargs)
        await store.aadd_documents(documents, ids)
        return store

    @classmethod
    def from_embeddings(
        cls,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts whose vectors are there already, from `qwen3-embed embed` for one.

        Args:
            text_embeddings: pairs of a text and its vector, of `dimensions` numbers.
            embedding: made the vectors, and makes those of queries.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.
            **kwargs: `index`, as in the constructor.

        Returns:
            The store.
        """
        store = cls(embedding, **kwargs)
        store.add_embeddings(text_embeddings, metadatas, ids=ids)
        return store

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts, or replace those that have the same id.

        Args:
            texts: the texts.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.
            **kwargs: as for `add_documents`.

        Returns:
            The ids.

        Raises:
            TypeError: a text is not a string, metadata or an id are of another type, or there are other arguments.
            ValueError: there are more or fewer metadatas or ids than texts.
        """
        return self.add_documents(_as_documents(texts, metadatas), ids, **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts without blocking the event loop.

        Args:
            texts: the texts.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.
            **kwargs: as for `add_documents`.

        Returns:
            What `add_texts` returns.
        """
        return await self.aadd_documents(_as_documents(texts, metadatas), ids, **kwargs)

    def add_embeddings(
        self,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Iterable[str | None] | None = None,
    ) -> list[str]:
        """Add texts whose vectors are there already, or replace those that have the same id.

        Args:
            text_embeddings: pairs of a text and its vector, of `dimensions` numbers.
            metadatas: one dictionary per text.
            ids: one per text; made up where there are none.

        Returns:
            The ids.

        Raises:
            TypeError: an item is no such pair, or metadata or an id are of another type.
            ValueError: there are more or fewer metadatas or ids than texts, or a vector has other dimensions than the
                index, a number that is not finite, or whole numbers, as the codes of a `Quantizer` have.
        """
        pairs = list(text_embeddings)
        for place, pair in enumerate(pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
                raise TypeError(f"the item at index {place} must be a pair of a text and its vector, got {pair!r:.80}")
        named = _named(_as_documents([text for text, _ in pairs], metadatas), ids)
        vectors = self._as_vectors([vector for _, vector in pairs])
        for place, (_, vector) in enumerate(pairs):
            _refuse_codes(vector, f"the vector at index {place}")
        self._put(named, vectors)
        return [str(document.id) for document in named]

    def add_documents(
        self, documents: Iterable[Document], ids: Iterable[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add documents, or replace those that have the same id.

        Args:
            documents: what to add; they stay as they are.
            ids: one per document, before the document's own; made up where there are neither. Of documents that share
                one the last is kept.
            **kwargs: `batch_size` and `current_time`, which LangChain passes, change nothing.

        Returns:
            The ids.

        Raises:
            TypeError: an item is no document, metadata or an id are of another type, or there are other arguments.
            ValueError: there are more or fewer ids than documents, or the vectors have other dimensions than the index.
        """
        _refuse_others("add_documents", kwargs, _PASSED_WHEN_ADDING)
        named = _named(documents, ids)
        kept = list({document.id: document for document in named}.values())
        if kept:
            vectors = self._embedding.embed_documents([document.page_content for document in kept])
            self._put(kept, self._as_vectors(vectors))
        return [str(document.id) for document in named]

    async def aadd_documents(
        self, documents: Iterable[Document], ids: Iterable[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Add documents without blocking the event loop.

        Args:
            documents: what to add; they stay as they are.
            ids: one per document, before the document's own; made up where there are neither.
            **kwargs: as for `add_documents`.

        Returns:
            What `add_documents` returns.
        """
        _refuse_others("aadd_documents", kwargs, _PASSED_WHEN_ADDING)
        named = _named(documents, ids)
        kept = list({document.id: document for document in named}.values())
        if kept:
            vectors = await self._embedding.aembed_documents([document.page_content for document in kept])
            await run_in_executor(None, lambda: self._put(kept, self._as_vectors(vectors)))
        return [str(document.id) for document in named]

    def merge_from(self, target: Qwen3VectorStore) -> None:
        """Add all documents of another store with their vectors; the other stays as it is.

        Args:
            target: the other store.

        Raises:
            FingerprintError: its vectors are of another model, revision, dimension or document instruction.
            TypeError: it is no store of this class, or an embedding is none of this package.
            ValueError: both stores have a document of one id.
        """
        if not isinstance(target, Qwen3VectorStore):
            raise TypeError(f"only a Qwen3VectorStore can be merged, got {type(target).__name__}")
        if target is self:
            raise ValueError("a store can't be merged with itself")
        _check_same_space(self._embedding, target._embedding)
        with target._lock:
            documents = [_copied(document) for document in target._documents.values()]
            vectors = target._vectors.vectors(np.array([*target._documents], dtype=np.int64))
        self._put(documents, self._as_vectors(vectors), replace=False)

    def delete(self, ids: Iterable[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents.

        Args:
            ids: which; None for all. Unknown ones are passed over.
            **kwargs: none.

        Returns:
            True.

        Raises:
            TypeError: ids is a single string, an id is of another type, or there are other arguments.
        """
        _refuse_others("delete", kwargs, ())
        names = None if ids is None else _as_ids(ids)
        with self._lock:
            if names is None:
                self._fill(self._vectors.emptied(), {})
            else:
                for name in names:
                    self._forget(name)
                self._tidy()
        return True

    async def adelete(self, ids: Iterable[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents without blocking the event loop.

        Args:
            ids: which; None for all. Unknown ones are passed over.
            **kwargs: none.

        Returns:
            True.
        """
        return await run_in_executor(None, self.delete, ids, **kwargs)

    def get_by_ids(self, ids: Iterable[str], /) -> list[Document]:
        """Get documents by their ids.

        Args:
            ids: which; unknown ones are passed over.

        Returns:
            The documents, in the order of the ids.

        Raises:
            TypeError: ids is a single string, or an id is of another type.
        """
        names = _as_ids(ids)
        with self._lock:
            return [_copied(self._documents[self._rows[name]]) for name in names if name in self._rows]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Find the documents nearest to a query.

        Args:
            query: the query.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: as for `similarity_search_with_score_by_vector`.

        Returns:
            The documents, nearest first.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find the documents nearest to a query without blocking the event loop.

        Args:
            query: the query.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: as for `similarity_search_with_score_by_vector`.

        Returns:
            The documents, nearest first.
        """
        return [document for document, _ in await self.asimilarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find the documents nearest to a query, with their scores.

        Args:
            query: the query.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: as for `similarity_search_with_score_by_vector`.

        Returns:
            The documents with their cosines, nearest first.
        """
        search = _Search(k, filter, **_search_kwargs(kwargs))
        return self._found(search, self._of_queries.embed_query(query))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find the documents nearest to a query, with their scores, without blocking the event loop.

        Args:
            query: the query.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: as for `similarity_search_with_score_by_vector`.

        Returns:
            The documents with their cosines, nearest first.
        """
        search = _Search(k, filter, **_search_kwargs(kwargs))
        vector = await self._of_queries.aembed_query(query)
        return await run_in_executor(None, self._found, search, vector)

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find the documents nearest to a vector.

        Args:
            embedding: the vector.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: as for `similarity_search_with_score_by_vector`.

        Returns:
            The documents, nearest first.
        """
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find the documents nearest to a vector, with their scores.

        Args:
            embedding: the vector.
            k: how many to find.
            filter: which documents may be found.
            **kwargs: `score_threshold`, the least cosine of what is found; `fetch_k` and `lambda_mult`, which are for
                another search, change nothing.

        Returns:
            The documents with their cosines, nearest first.

        Raises:
            TypeError: there are other arguments, or a part of the filter has the wrong type.
            ValueError: k is below 1, the vector has other dimensions than the index, or the filter has an operator that
                is not known here.
        """
        return self._found(_Search(k, filter, **_search_kwargs(kwargs)), embedding)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents that are near to a query and unlike each other.

        Args:
            query: the query.
            k: how many to find.
            fetch_k: how many of the nearest to choose from; k where that is more.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: which documents may be found.
            **kwargs: `score_threshold`, the least cosine of what is found.

        Returns:
            The documents, in the order in which they were chosen.
        """
        search = _Search(_most(k, fetch_k, lambda_mult), filter, **_search_kwargs(kwargs))
        return self._diverse(search, self._of_queries.embed_query(query), k, lambda_mult)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents that are near to a query and unlike each other without blocking the event loop.

        Args:
            query: the query.
            k: how many to find.
            fetch_k: how many of the nearest to choose from; k where that is more.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: which documents may be found.
            **kwargs: `score_threshold`, the least cosine of what is found.

        Returns:
            The documents, in the order in which they were chosen.
        """
        search = _Search(_most(k, fetch_k, lambda_mult), filter, **_search_kwargs(kwargs))
        vector = await self._of_queries.aembed_query(query)
        return await run_in_executor(None, self._diverse, search, vector, k, lambda_mult)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents that are near to a vector and unlike each other.

        Args:
            embedding: the vector.
            k: how many to find.
            fetch_k: how many of the nearest to choose from; k where that is more.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: which documents may be found.
            **kwargs: `score_threshold`, the least cosine of what is found.

        Returns:
            The documents, in the order in which they were chosen.

        Raises:
            TypeError: there are other arguments, or a part of the filter has the wrong type.
            ValueError: k or fetch_k is below 1, the vector has other dimensions than the index, or the filter has an
                operator that is not known here.
        """
        search = _Search(_most(k, fetch_k, lambda_mult), filter, **_search_kwargs(kwargs))
        return self._diverse(search, embedding, k, lambda_mult)

    def save_local(self, folder_path: str | os.PathLike[str], index_name: str = "index") -> None:
        """Write the store to a folder; one that was there is replaced at once, so that a crash leaves it whole.

        Args:
            folder_path: the folder, which is made where there is none.
            index_name: the store's name in the folder, which may hold several.

        Raises:
            TypeError: the embedding is none of this package.
            ValueError: index_name can't be part of a file's name.
        """
        encoder = _encoder_of(self._embedding)
        folder, name = Path(folder_path), _checked_name(index_name)
        with self._lock:
            lines = [
                json.dumps([row, document.id, document.page_content, document.metadata]) + "\n"
                for row, document in self._documents.items()
            ]
            folder.mkdir(parents=True, exist_ok=True)
            # Under a new name, so that the index, which names its documents, is what replaces the old store.
            documents = folder / f"documents-{name}-{uuid4().hex}.jsonl.gz"
            write_atomically(documents, gzip.compress("".join(lines).encode("ascii")))
            write_index(self._vectors.index, folder / f"{name}.faiss", encoder, documents.name)
            for path in folder.iterdir():
                if _is_documents(path.name, name) and path != documents:
                    path.unlink(missing_ok=True)

    @classmethod
    def load_local(cls, folder_path: str | os.PathLike[str], embedding: Embeddings, index_name: str = "index") -> Self:
        """Open a store that `save_local` wrote.

        Args:
            folder_path: the folder.
            embedding: makes the queries' vectors; it has to be one of this package, or `CacheBackedEmbeddings` around
                one.
            index_name: the store's name in the folder.

        Returns:
            The store.

        Raises:
            TypeError: embedding is none of this package.
            ValueError: index_name can't be part of a file's name.
            FileNotFoundError: there is no store of this name in the folder.
            FingerprintError: it holds vectors of another model, revision, dimension or document instruction.
            DamagedIndexError: a file is not as it was saved.
        """
        encoder = _encoder_of(embedding)
        folder, name = Path(folder_path), _checked_name(index_name)
        saved = check_index(folder / f"{name}.faiss", encoder)
        if saved.documents is None:
            raise DamagedIndexError(f"{str(folder)!r} has an index without documents: open it with load_index")
        if not _is_documents(saved.documents, name):
            raise DamagedIndexError(f"{str(folder)!r} names {saved.documents!r}, which is no file of a store")
        index = read_index(folder / f"{name}.faiss")
        if index.d != encoder.dimensions:
            raise DamagedIndexError(f"{str(folder)!r} has an index of {index.d} dimensions, not {encoder.dimensions}")
        documents = _read_documents(folder / saved.documents, index.ntotal)
        store = cls.__new__(cls)
        store._restore(embedding, index, documents)
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: min(max(cosine, 0.0), 1.0)

    def _found(self, search: _Search, embedding: Sequence[float]) -> list[tuple[Document, float]]:
        with self._searching(search, embedding) as found:
            return [(_copied(self._documents[row]), score) for row, score in found]

    def _diverse(self, search: _Search, embedding: Sequence[float], k: int, lambda_mult: float) -> list[Document]:
        with self._searching(search, embedding) as found:
            rows = [row for row, _ in found]
            vectors = self._vectors.vectors(np.array(rows, dtype=np.int64))
            query = np.array(embedding, dtype=np.float32)
            # A vector of zeros has no direction to be unlike another's.
            comparable = bool(query.any()) and bool(vectors.any(axis=1).all())
            chosen = maximal_marginal_relevance(query, list(vectors), lambda_mult, k) if comparable else range(k)
            return [_copied(self._documents[rows[place]]) for place in chosen if place < len(rows)]

    @contextmanager
    def _searching(self, search: _Search, embedding: Sequence[float]) -> Iterator[list[tuple[int, float]]]:
        """Search, and keep the rows that were found as they are until their documents are read."""
        vector = _as_row(embedding, "the query's vector", self._vectors.dimensions)
        # Without the lock, since the function may use the store.
        passed = self._asked(search.filter) if callable(search.filter) else None
        with self._lock:
            wanted: NDArray[np.bool_] | None = None
            if passed is not None:
                wanted = self._rows_of(passed)
            elif search.condition is not None:
                wanted = search.condition(self._columns)
            found = self._vectors.search(vector, search.k, wanted)
            yield [one for one in found if search.score_threshold is None or one[1] >= search.score_threshold]

    def _asked(self, function: Callable[[Document], bool]) -> list[Document]:
        with self._lock:
            documents = list(self._documents.values())
        logger.info("the filter function is asked about %d documents; a dictionary asks nothing", len(documents))
        return [document for document in documents if function(document)]

    def _rows_of(self, documents: list[Document]) -> NDArray[np.bool_]:
        """Find the rows of documents that are still what they were."""
        wanted = np.zeros(len(self._columns), dtype=np.bool_)
        for document in documents:
            row = self._rows.get(str(document.id))
            if row is not None and self._documents[row] is document:
                wanted[row] = True
        return wanted

    def _put(self, documents: list[Document], vectors: NDArray[np.float32], *, replace: bool = True) -> None:
        """Hold documents that belong to the store alone, in place of those of the same ids."""
        if len(vectors) != len(documents):
            raise ValueError(f"the embedding made {len(vectors)} vectors of {len(documents)} texts")
        with self._lock:
            known = [] if replace else [repr(one.id) for one in documents if one.id in self._rows]
            if known:
                raise ValueError(f"{len(known)} documents are in both stores, {', '.join(known[:3])} among them")
            if not documents:
                return
            first = self._vectors.add(vectors)
            for row, document in enumerate(documents, start=first):
                self._forget(str(document.id))
                self._hold(row, document)
                self._vectors.set_alive(row, True)
            self._tidy()

    def _forget(self, name: str) -> None:
        row = self._rows.pop(name, None)
        if row is not None:
            del self._documents[row]
            self._vectors.set_alive(row, False)

    def _tidy(self) -> None:
        """Build the index anew once more rows are deleted than alive: a search meets one such row for each other."""
        if self._vectors.dead <= len(self._documents):
            return
        logger.info("the index is built anew without %d deleted documents", self._vectors.dead)
        vectors, kept = self._vectors.compacted()
        self._fill(vectors, {new: self._documents[old] for new, old in enumerate(kept.tolist())})

    def _as_vectors(self, vectors: Any) -> NDArray[np.float32]:
        """Check vectors, and bring them to unit length, so that inner products are cosines."""
        rows = [
            _as_row(vector, f"the vector at index {place}", self._vectors.dimensions)
            for place, vector in enumerate(vectors)
        ]
        return np.stack(rows) if rows else np.zeros((0, self._vectors.dimensions), dtype=np.float32)


class _Search:
    """What is looked for, checked before any work.

    Args:
        k: how many to find.
        filter: which documents may be found.
        score_threshold: the least cosine.
    """

    def __init__(self, k: int, filter: Filter | None, score_threshold: float | None = None) -> None:
        self.k = as_integer("k", k)
        if self.k < 1:
            raise ValueError(f"the number of documents to find must be at least 1, got {k}")
        is_number = isinstance(score_threshold, (int, float, np.number)) and not np.isnan(score_threshold)
        if score_threshold is not None and not is_number:
            raise ValueError(f"score_threshold must be a number, got {score_threshold!r:.80}")
        self.filter, self.score_threshold = filter, score_threshold
        if iscoroutinefunction(filter):
            raise TypeError("a filter function must not be async: nobody would wait for its answer")
        self.condition = None if filter is None or callable(filter) else compiled(filter)


def _search_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    _refuse_others("a search", kwargs, _PASSED_WHEN_SEARCHING)
    return {"score_threshold": kwargs.get("score_threshold")}


def _most(k: int, fetch_k: int, lambda_mult: float) -> int:
    if not isinstance(lambda_mult, (int, float, np.number)) or not 0 <= lambda_mult <= 1:
        raise ValueError(f"lambda_mult must be a number from 0 to 1, got {lambda_mult!r:.80}")
    for name, number in (("k", k), ("fetch_k", fetch_k)):
        if as_integer(name, number) < 1:
            raise ValueError(f"{name}, the number of documents to find, must be at least 1, got {number}")
    return max(k, fetch_k)


def _refuse_others(name: str, kwargs: dict[str, Any], passed: tuple[str, ...]) -> None:
    others = [other for other in kwargs if other not in passed]
    if others:
        raise TypeError(f"{name} takes no {', '.join(others)}")


def _as_row(vector: Any, name: str, dimensions: int) -> NDArray[np.float32]:
    try:
        row = np.asarray(vector)
    except ValueError:  # Lists of different lengths within.
        row = np.empty(0, dtype=object)
    if row.ndim != 1 or row.dtype.kind not in "fiu":
        kind = f"{type(vector).__name__} of shape {row.shape} and type {row.dtype}"
        raise TypeError(f"{name} must be {dimensions} numbers, got {kind}")
    if len(row) != dimensions:
        raise ValueError(f"{name} has {len(row)} dimensions, and the index {dimensions}")
    row = row.astype(np.float64)
    largest = np.abs(row).max(initial=0)
    if not np.isfinite(largest):
        raise ValueError(f"{name} has a number that is not finite")
    # To unit length in two steps, since squares of very small and great numbers are none.
    row = row / largest if largest else row
    return np.asarray(row / (np.linalg.norm(row) or 1), dtype=np.float32)


def _refuse_codes(vector: Any, name: str) -> None:
    row = np.asarray(vector)
    if row.dtype.kind in "iu" and np.abs(row.astype(np.float32)).max() > 1:
        raise ValueError(
            f"{name} is of whole numbers, as int8 codes are, whose cosines would be wrong: give the vectors that they "
            "were made from, or compare codes with Quantizer.scores"
        )


def _as_documents(texts: Iterable[str], metadatas: Iterable[dict[str, Any]] | None) -> list[Document]:
    texts = as_texts(texts)
    if metadatas is None:
        return [Document(page_content=text) for text in texts]
    metadatas = as_metadatas(metadatas)
    if len(metadatas) != len(texts):
        raise ValueError(f"metadatas must be one per text, got {len(metadatas)} for {len(texts)} texts")
    return [Document(page_content=text, metadata=one) for text, one in zip(texts, metadatas, strict=True)]


def _named(documents: Iterable[Document], ids: Iterable[str | None] | None) -> list[Document]:
    """Copy documents, each with its id, and with metadata that can be saved."""
    documents = list(documents)
    for place, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TypeError(f"the item at index {place} must be a Document, got {type(document).__name__}")
    given = [document.id for document in documents] if ids is None else _listed(ids)
    if len(given) != len(documents):
        raise ValueError(f"ids must be one per document, got {len(given)} for {len(documents)} documents")
    names = [str(uuid4()) if id_ is None else _as_id(id_, place) for place, id_ in enumerate(given)]
    return [
        Document(
            id=name,
            page_content=document.page_content,
            metadata=_plain_metadata(document.metadata, f"the metadata of the document at index {place}"),
        )
        for place, (name, document) in enumerate(zip(names, documents, strict=True))
    ]


def _plain_metadata(metadata: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        made: dict[str, Any] = plain(metadata, path)
    except RecursionError:
        raise ValueError(f"{path} is nested too deep, or holds itself") from None
    return made


def _listed(ids: Iterable[Any]) -> list[Any]:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"ids must be a list of strings, got {ids!r:.80} ({type(ids).__name__})")
    return list(ids)


def _as_id(id_: Any, place: int) -> str:
    """Read an id; LangChain's documents make strings of numbers too."""
    if isinstance(id_, bool) or not isinstance(id_, (str, int, np.integer)):
        raise TypeError(f"the id at index {place} must be a string, got {id_!r:.80} ({type(id_).__name__})")
    return str(id_)


def _as_ids(ids: Iterable[Any]) -> list[str]:
    return [_as_id(id_, place) for place, id_ in enumerate(_listed(ids))]


def _copied(document: Document) -> Document:
    metadata = {
        name: deepcopy(value) if isinstance(value, (list, dict)) else value for name, value in document.metadata.items()
    }
    return Document(id=document.id, page_content=document.page_content, metadata=metadata)


def _checked_name(index_name: str) -> str:
    if not isinstance(index_name, str) or not re.fullmatch(r"[\w.-]{1,100}", index_name) or index_name.startswith("."):
        raise ValueError(
            f"index_name must be up to 100 letters, digits, dots, dashes and underscores, got {index_name!r}"
        )
    return index_name


def _is_documents(path: str, index_name: str) -> bool:
    return re.fullmatch(rf"documents-{re.escape(index_name)}-[0-9a-f]{{32}}\.jsonl\.gz", path) is not None


def _read_documents(path: Path, rows: int) -> dict[int, Document]:
    try:
        lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
        documents = {}
        for line in lines:
            row, id_, text, metadata = json.loads(line)
            if not (type(row) is int and type(id_) is str and type(text) is str and type(metadata) is dict):
                raise ValueError("a line is no row, id, text and metadata")
            documents[row] = Document(id=id_, page_content=text, metadata=metadata)
        ids = {document.id for document in documents.values()}
        places = list(documents)
        if places != sorted(places) or not len(ids) == len(places) == len(lines):
            raise ValueError("its rows or ids are not in order")
        if places and not 0 <= places[0] <= places[-1] < rows:
            raise ValueError("it has rows that the index has not")
    except (EOFError, FileNotFoundError, ValueError, TypeError, RecursionError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedIndexError(f"{str(path)!r} is damaged or missing: {error}") from error
    return documents


def _layers(embedding: Embeddings) -> list[Any]:
    """List an embedding and what it is around, for LangChain's CacheBackedEmbeddings."""
    layers: list[Any] = [embedding]
    while hasattr(layers[-1], "underlying_embeddings"):
        layers.append(layers[-1].underlying_embeddings)
    return layers


def _encoder_of(embedding: Embeddings) -> Any:
    inner = _layers(embedding)[-1]
    encoder = getattr(inner, "encoder", None)
    if encoder is None:
        raise TypeError(
            f"the embedding must be one of this package, which tells its dimensions and fingerprint, "
            f"got {type(inner).__name__}"
        )
    return encoder


def _for_queries(embedding: Embeddings) -> Embeddings:
    """Find what embeds queries: no CacheBackedEmbeddings that keeps queries and documents under the same keys."""
    layers = _layers(embedding)
    if not any(_shares_cache(layer) for layer in layers):
        return embedding
    logger.warning(
        "the cache of documents is that of queries too, where a query that is also a document would get the document's "
        "vector: queries are not cached; give query_embedding_cache a store of its own"
    )
    inner: Embeddings = layers[-1]
    return inner


def _shares_cache(layer: Any) -> bool:
    caches = [getattr(layer, f"{kind}_embedding_store", None) for kind in ("query", "document")]
    # LangChain wraps what the bytes are kept in once for queries and once for documents.
    kept = [getattr(cache, "store", cache) for cache in caches]
    return kept[0] is not None and kept[0] is kept[1]


def _check_same_space(ours: Embeddings, theirs: Embeddings) -> None:
    prints = [_encoder_of(embedding).fingerprint for embedding in (ours, theirs)]
    if prints[0] != prints[1]:
        raise FingerprintError(f"vectors of {prints[1]} cannot be compared with those of {prints[0]}")
