"""A LangChain vector store over a two-stage FAISS index.

langchain-community has a store for FAISS, but that package is no longer developed, its store is loaded from a pickle,
which can run any code, and it cannot delete from a graph. This one does what LangChain asks of a vector store, keeps
the texts as JSON, and refuses an index of another encoder.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

try:
    from langchain_core.documents import Document
    from langchain_core.vectorstores import VectorStore
    from langchain_core.vectorstores.utils import maximal_marginal_relevance
except ImportError as error:
    raise ImportError(
        "the LangChain vector store needs langchain-core: pip install 'qwen3-embed-integrations[langchain,faiss]'"
    ) from error

from qwen3_embed_integrations.index_file import (
    DamagedIndexError,
    check_index,
    write_atomically,
    write_index,
)
from qwen3_embed_integrations.matryoshka import import_faiss, two_stage_index

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import faiss
    from langchain_core.embeddings import Embeddings
    from numpy.typing import NDArray
    from typing_extensions import Self

    Filter = Callable[[Document], bool] | dict[str, Any]

_INDEX = "index.faiss"


class Qwen3VectorStore(VectorStore):
    """Documents with their vectors in a FAISS index, by default one that searches in two stages.

    Scores are cosines: 1 is the same direction. A deleted or replaced document is never found again, but its vector
    stays in the index, since a graph cannot let go of one; `delete` without ids empties it. Many threads may use one
    store.

    Args:
        embedding: makes the vectors, of unit length; to save the store it has to be one of this package.
        index: an empty index of inner products for them; None for `two_stage_index` with its defaults.

    Raises:
        ImportError: FAISS is not installed.
        TypeError: there is no index, and embedding is none of this package, which would know its dimensions.
        ValueError: the index is not empty, or its scores are not inner products.

    Example:
        >>> from qwen3_embed_integrations.langchain import Qwen3Embeddings
        >>> from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
        >>> store = Qwen3VectorStore(Qwen3Embeddings(model="tiny"))
        >>> ids = store.add_texts(["Copy a directory tree.", "Compute a square root."])
        >>> store.similarity_search("how do I copy a folder?", k=1)[0].page_content
        'Copy a directory tree.'
    """

    def __init__(self, embedding: Embeddings, index: faiss.Index | None = None) -> None:
        if index is None:
            index = two_stage_index(_encoder_of(embedding).dimensions)
        if index.ntotal:
            raise ValueError(f"the index must be empty, but has {index.ntotal} vectors: load_local opens a saved store")
        if index.metric_type != import_faiss().METRIC_INNER_PRODUCT:
            raise ValueError("the index must be one of inner products: make it with faiss.METRIC_INNER_PRODUCT")
        self._embedding = embedding
        self._index = index
        self._documents: dict[int, Document] = {}
        self._rows: dict[str, int] = {}
        # FAISS allows no search while a vector is added.
        self._lock = threading.Lock()

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    @property
    def index(self) -> faiss.Index:
        """The FAISS index, for its settings; add to it through the store only."""
        return self._index

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a store of texts.

        Args:
            texts: the texts.
            embedding: makes the vectors.
            metadatas: one dictionary a text.
            ids: one a text; made up where there are none.
            **kwargs: `index`, as in the constructor.

        Returns:
            The store.
        """
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **kwargs: Any) -> list[str]:
        """Add documents, or replace those that have the same id.

        Args:
            documents: what to add; they stay as they are.
            ids: one a document, before the document's own; made up where there are neither.
            **kwargs: none.

        Returns:
            The ids.

        Raises:
            TypeError: there are other arguments.
            ValueError: there are more or fewer ids than documents, or the vectors have other dimensions than the index.
        """
        if kwargs:
            raise TypeError(f"add_documents takes no {', '.join(kwargs)}")
        if ids is not None and len(ids) != len(documents):
            raise ValueError(f"ids must be one a document, got {len(ids)} for {len(documents)} documents")
        if not documents:
            return []
        given = ids if ids is not None else [document.id for document in documents]
        named = [id_ or str(uuid4()) for id_ in given]
        vectors = self._as_vectors(self._embedding.embed_documents([document.page_content for document in documents]))
        with self._lock:
            first = self._index.ntotal
            self._index.add(vectors)
            for row, (id_, document) in enumerate(zip(named, documents, strict=True), start=first):
                self._forget(id_)
                self._rows[id_] = row
                self._documents[row] = _copied(document, id_)
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Delete documents.

        Args:
            ids: which; None for all. Unknown ones are passed over.
            **kwargs: none.

        Returns:
            True.

        Raises:
            TypeError: there are other arguments.
        """
        if kwargs:
            raise TypeError(f"delete takes no {', '.join(kwargs)}")
        with self._lock:
            if ids is None:
                self._index.reset()
                self._documents.clear()
                self._rows.clear()
            else:
                for id_ in ids:
                    self._forget(id_)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Get documents by their ids.

        Args:
            ids: which; unknown ones are passed over.

        Returns:
            The documents, in the order of the ids.
        """
        with self._lock:
            return [_copied(self._documents[self._rows[id_]], id_) for id_ in ids if id_ in self._rows]

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Find the documents nearest to a query.

        Args:
            query: the query.
            k: how many to find.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents, nearest first.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find the documents nearest to a query, with their scores.

        Args:
            query: the query.
            k: how many to find.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents with their cosines, nearest first.
        """
        return self.similarity_search_with_score_by_vector(self._embedding.embed_query(query), k, filter, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find the documents nearest to a vector.

        Args:
            embedding: the vector, of unit length.
            k: how many to find.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents, nearest first.
        """
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Find the documents nearest to a vector, with their scores.

        Args:
            embedding: the vector, of unit length.
            k: how many to find.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents with their cosines, nearest first.

        Raises:
            TypeError: there are other arguments.
            ValueError: k is below 1, or the vector has other dimensions than the index.
        """
        if kwargs:
            raise TypeError(f"a search takes no {', '.join(kwargs)}")
        with self._lock:
            found = self._find(embedding, k, filter)
            return [(_copied(self._documents[row], self._documents[row].id), score) for row, score in found]

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
            fetch_k: how many of the nearest to choose from.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents, in the order in which they were chosen.
        """
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Find documents that are near to a vector and unlike each other.

        Args:
            embedding: the vector, of unit length.
            k: how many to find.
            fetch_k: how many of the nearest to choose from.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter: a function from a document to whether it may be found, or what its metadata must be.
            **kwargs: none.

        Returns:
            The documents, in the order in which they were chosen.

        Raises:
            TypeError: there are other arguments.
            ValueError: fetch_k is below 1, or the vector has other dimensions than the index.
        """
        if kwargs:
            raise TypeError(f"a search takes no {', '.join(kwargs)}")
        with self._lock:
            rows = [row for row, _ in self._find(embedding, fetch_k, filter)]
            vectors = [self._index.reconstruct(row).tolist() for row in rows]
            chosen = maximal_marginal_relevance(np.array(embedding, dtype=np.float32), vectors, lambda_mult, k)
            return [_copied(self._documents[rows[place]], self._documents[rows[place]].id) for place in chosen]

    def save_local(self, folder_path: str | os.PathLike[str]) -> None:
        """Write the store to a folder; one that was there is replaced at once, so that a crash leaves it whole.

        Args:
            folder_path: the folder, which is made where there is none.

        Raises:
            TypeError: the embedding is none of this package, or a document's metadata can't be written as JSON.
        """
        encoder = _encoder_of(self._embedding)
        folder = Path(folder_path)
        with self._lock:
            lines = list(self._lines())
            folder.mkdir(parents=True, exist_ok=True)
            # Under a new name, so that the index, which names its documents, is what replaces the old store.
            documents = folder / f"documents-{uuid4().hex}.jsonl.gz"
            write_atomically(documents, gzip.compress("".join(lines).encode("ascii")))
            write_index(self._index, folder / _INDEX, encoder, documents.name)
            for path in folder.glob("documents-*.jsonl.gz"):
                if path != documents:
                    path.unlink()

    @classmethod
    def load_local(cls, folder_path: str | os.PathLike[str], embedding: Embeddings) -> Self:
        """Open a store that `save_local` wrote.

        Args:
            folder_path: the folder.
            embedding: makes the queries' vectors; it has to be one of this package.

        Returns:
            The store.

        Raises:
            TypeError: embedding is none of this package.
            FileNotFoundError: there is no store in the folder.
            FingerprintError: it holds vectors of another model, revision, dimension or document instruction.
            DamagedIndexError: a file is not as it was saved.
        """
        encoder = _encoder_of(embedding)
        folder = Path(folder_path)
        saved = check_index(folder / _INDEX, encoder)
        if saved.documents is None:
            raise DamagedIndexError(f"{str(folder)!r} has an index without documents: open it with load_index")
        path = folder / saved.documents
        try:
            lines = gzip.decompress(path.read_bytes()).decode("ascii").splitlines()
        except (EOFError, gzip.BadGzipFile, zlib.error, FileNotFoundError, UnicodeDecodeError) as error:
            raise DamagedIndexError(f"{str(path)!r} is damaged or missing: {error}") from error
        store = cls.__new__(cls)
        store._embedding = embedding
        store._index = import_faiss().read_index(str(folder / _INDEX))
        store._lock = threading.Lock()
        store._documents, store._rows = {}, {}
        for line in lines:
            row, id_, text, metadata = json.loads(line)
            store._documents[row] = Document(id=id_, page_content=text, metadata=metadata)
            store._rows[id_] = row
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: min(max(cosine, 0.0), 1.0)

    def _find(self, embedding: list[float], k: int, filter: Filter | None) -> list[tuple[int, float]]:
        if k < 1:
            raise ValueError(f"the number of documents to find must be at least 1, got {k}")
        vector = self._as_vectors([embedding])
        fetch = k
        while True:
            scores, rows = self._index.search(vector, fetch)
            found = [
                (int(row), float(score))
                for row, score in zip(rows[0], scores[0], strict=True)
                if row in self._documents and _allowed(self._documents[row], filter)
            ]
            if len(found) >= k or fetch >= self._index.ntotal:
                return found[:k]
            fetch = min(4 * fetch, self._index.ntotal)

    def _forget(self, id_: str) -> None:
        row = self._rows.pop(id_, None)
        if row is not None:
            del self._documents[row]

    def _as_vectors(self, vectors: list[list[float]]) -> NDArray[np.float32]:
        array = np.array(vectors, dtype=np.float32)
        if array.shape[1] != self._index.d:
            raise ValueError(f"the vectors have {array.shape[1]} dimensions, and the index {self._index.d}")
        return array

    def _lines(self) -> Iterator[str]:
        for row, document in self._documents.items():
            try:
                yield json.dumps([row, document.id, document.page_content, document.metadata]) + "\n"
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"the metadata of document {document.id!r} can't be written as JSON: {error}"
                ) from error


def _copied(document: Document, id_: str | None) -> Document:
    return Document(id=id_, page_content=document.page_content, metadata=dict(document.metadata))


def _allowed(document: Document, filter: Filter | None) -> bool:
    if filter is None:
        return True
    if callable(filter):
        return filter(document)
    return all(name in document.metadata and document.metadata[name] == value for name, value in filter.items())


def _encoder_of(embedding: Embeddings) -> Any:
    encoder = getattr(embedding, "encoder", None)
    if encoder is None:
        raise TypeError(
            f"the embedding must be one of this package, which tells its dimensions and fingerprint, "
            f"got {type(embedding).__name__}"
        )
    return encoder
