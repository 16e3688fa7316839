"""What the LangChain store finds, against a flat index: filters, deletions, equal vectors, any k."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import date, datetime, timedelta, timezone
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from qwen3_embed_integrations import vector_rows
from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
from qwen3_embed_integrations.matryoshka import two_stage_index

DIMENSIONS = 48
# Of float16.
ROUNDING = 1e-3


class Unused(Embeddings):
    """Stands for an embedding whose vectors are there already."""

    def __init__(self, dimensions=DIMENSIONS):
        self.encoder = SimpleNamespace(dimensions=dimensions, fingerprint=f"random.d{dimensions}")

    def embed_documents(self, texts):
        raise AssertionError

    def embed_query(self, text):
        raise AssertionError


def unit(count, random, dimensions=DIMENSIONS):
    """Vectors whose first components carry most."""
    vectors = random.standard_normal((count, dimensions)) * np.arange(1, dimensions + 1) ** -0.5
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_graphs(monkeypatch):
    """Ask the graph in stores that are small enough for a test."""
    monkeypatch.setattr(vector_rows, "_EXACT_COMPONENTS", 50 * DIMENSIONS)
    monkeypatch.setattr(vector_rows, "_COMPONENTS_PER_STEP", DIMENSIONS)


FILTERS = [
    (None, lambda metadata: True),
    ({"tenant": 3}, lambda metadata: metadata["tenant"] == 3),
    ({"tenant": [1, 2, 99]}, lambda metadata: metadata["tenant"] in (1, 2)),
    ({"tenant": {"$gte": 10, "$lt": 18}}, lambda metadata: 10 <= metadata["tenant"] < 18),
    ({"$not": {"tenant": 1}}, lambda metadata: metadata["tenant"] != 1),
    (
        {"$or": [{"tenant": {"$nin": [0, 1]}, "name": {"$lt": "3"}}, {"odd": True}]},
        lambda metadata: (metadata["tenant"] not in (0, 1) and metadata["name"] < "3") or "odd" in metadata,
    ),
    (lambda document: document.metadata["tenant"] < 5, lambda metadata: metadata["tenant"] < 5),
]


class Model:
    """The store, and what it ought to hold."""

    def __init__(self, seed, folder, **graph):
        self.random = np.random.default_rng(seed)
        self.folder = folder
        self.store = Qwen3VectorStore(Unused(), two_stage_index(DIMENSIONS, 32, **graph))
        self.held = {}
        self.right = self.found = 0

    def add(self):
        count = int(self.random.integers(1, 40))
        vectors = unit(count, self.random)
        if self.random.random() < 0.3:
            vectors[:] = vectors[0]
        ids = [str(number) for number in self.random.integers(0, 2000, count)]
        metadatas = [
            {"tenant": int(self.random.integers(0, 20)), "name": id_, **({"odd": True} if int(id_) % 2 else {})}
            for id_ in ids
        ]
        self.store.add_embeddings(list(zip(ids, vectors, strict=True)), metadatas, ids=ids)
        self.held |= dict(zip(ids, zip(vectors, metadatas, strict=True), strict=True))

    def delete(self):
        count = min(len(self.held), int(self.random.integers(1, 60)))
        ids = [str(id_) for id_ in self.random.choice([*self.held], count, replace=False)] if count else []
        self.store.delete([*ids, "never there"])
        for id_ in ids:
            del self.held[id_]

    def empty(self):
        self.store.delete()
        self.held.clear()

    def save_and_load(self):
        self.store.save_local(self.folder)
        self.store = Qwen3VectorStore.load_local(self.folder, self.store.embeddings)

    def search(self, exact):
        query = unit(1, self.random)[0]
        k = int(self.random.choice([1, 4, 10, 50, 3000]))
        filter, allows = FILTERS[self.random.integers(len(FILTERS))]
        found = self.store.similarity_search_with_score_by_vector(query.tolist(), k=k, filter=filter)
        allowed = {id_: vector for id_, (vector, metadata) in self.held.items() if allows(metadata)}
        assert len(found) == min(k, len(allowed))
        ids = [document.id for document, _ in found]
        assert len({*ids}) == len(ids)
        assert {*ids} <= {*allowed}
        assert all(document.metadata == self.held[document.id][1] for document, _ in found)
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True)
        flat = faiss.IndexFlatIP(DIMENSIONS)
        if allowed:
            flat.add(np.stack([*allowed.values()]))
            [best] = flat.search(query[None], len(found))[0]
            if exact:
                np.testing.assert_allclose(scores, best, atol=ROUNDING)
            self.right += int((np.array(scores) >= best[-1] - ROUNDING).sum())
            self.found += len(found)

    def run(self, operations, exact):
        for number in range(operations):
            chance = self.random.random()
            if chance < 0.35:
                self.add()
            elif chance < 0.45:
                self.delete()
            elif chance < 0.452:
                self.empty()
            elif chance < 0.46:
                self.save_and_load()
            else:
                self.search(exact)
            assert len(self.store) == len(self.held), number
        return self.right / self.found


def test_whatever_was_added_and_deleted_a_flat_index_finds_the_same(tmp_path):
    # No search asks this graph, which is therefore cheap to add to.
    assert Model(0, tmp_path, neighbors=4, ef_construction=4).run(5000, exact=True) == 1


def test_a_graph_finds_as_many_and_nearly_the_same(small_graphs, tmp_path):
    assert Model(1, tmp_path).run(5000, exact=False) >= 0.98


def test_a_store_of_many_documents(tmp_path):
    random = np.random.default_rng(2)
    vectors, queries = unit(20_000, random, 256), unit(50, random, 256)
    vectors[5000:9000] = vectors[5000]
    store = Qwen3VectorStore(Unused(256))
    # The tenants' vectors differ, so that those of a small one are seldom among the nearest of all.
    tenants = np.where(vectors[:, 0] > 0.75, "rare", np.where(vectors[:, 0] > 0.1, "half", "other"))
    metadatas = [{"tenant": str(tenant), "number": number} for number, tenant in enumerate(tenants)]
    store.add_embeddings([("", vector) for vector in vectors], metadatas, ids=map(str, range(20_000)))
    store.delete([str(number) for number in range(0, 20_000, 10)])
    alive = np.arange(20_000) % 10 != 0
    cases = [(None, alive), ({"tenant": "rare"}, alive & (tenants == "rare"))]
    cases += [({"tenant": "half"}, alive & (tenants == "half"))]
    cases += [({"number": {"$lt": 300}}, alive & (np.arange(20_000) < 300))]
    for filter, mask in cases:
        right = found = 0
        for query in queries:
            true = np.sort(vectors[mask] @ query)[::-1]
            for k in (10, 100, int(mask.sum()) if query is queries[0] else 1):
                scores = [score for _, score in store.similarity_search_with_score_by_vector(query, k, filter)]
                assert len(scores) == min(k, len(true))
                right += int((np.array(scores) >= true[len(scores) - 1] - ROUNDING).sum())
                found += len(scores)
        assert right / found >= 0.98, filter


def test_one_document_among_three_hundred_of_another_tenant():
    random = np.random.default_rng(3)
    store = Qwen3VectorStore(Unused())
    vectors = unit(301, random)
    tenants = [{"tenant": "a"}] * 300 + [{"tenant": "b"}]
    store.add_embeddings([("", vector) for vector in vectors], tenants, ids=map(str, range(301)))
    query = unit(1, random)[0]
    assert [found.id for found in store.similarity_search_by_vector(query, filter={"tenant": "b"})] == ["300"]
    assert len(store.similarity_search_by_vector(query, k=301)) == 301
    chosen = store.max_marginal_relevance_search_by_vector(query, k=5, fetch_k=2, filter={"tenant": ["a", "b"]})
    assert len(chosen) == 5


def test_the_same_ids_every_day():
    random = np.random.default_rng(4)
    store = Qwen3VectorStore(Unused())
    for _ in range(30):
        store.add_embeddings([("", vector) for vector in unit(50, random)], ids=map(str, range(50)))
        assert len(store.similarity_search_by_vector(unit(1, random)[0], k=50)) == 50
        assert store.index.ntotal <= 2 * 50


@pytest.mark.parametrize("crowd", ["equal", "nearly equal"])
def test_crowds_of_equal_vectors(crowd, small_graphs):
    random = np.random.default_rng(5)
    distinct, queries = unit(2000, random), unit(100, random)
    # One in the middle of all, as the vectors of empty texts are.
    middle = distinct.mean(axis=0)
    crowded = np.repeat(middle[None] / np.linalg.norm(middle), 4000, axis=0)
    if crowd == "nearly equal":
        crowded += 0.01 * unit(4000, random)
        crowded /= np.linalg.norm(crowded, axis=1, keepdims=True)
    vectors = random.permutation(np.concatenate([distinct, crowded])).astype(np.float32)
    store = Qwen3VectorStore(Unused())
    for part in np.array_split(vectors, 8):
        store.add_embeddings([("", vector) for vector in part])
    best = -np.sort(-(queries @ vectors.T), axis=1)[:, 9]
    found = [[score for _, score in store.similarity_search_with_score_by_vector(query, 10)] for query in queries]
    assert np.mean(np.array(found) >= best[:, None] - ROUNDING) >= 0.99


DOCUMENTS = [
    Document("0", metadata={"source": "a", "year": 2020, "tags": ["x", "y"], "at": date(2026, 1, 2)}),
    Document("1", metadata={"source": "b", "year": 2021.0, "tags": [], "nested": {"n": [1]}}),
    Document("2", metadata={"source": "c", "year": "2022", "flag": True}),
    Document("3", metadata={"source": None}),
    Document("4", metadata={}),
]


@pytest.fixture
def documents():
    store = Qwen3VectorStore(Unused())
    vectors = unit(len(DOCUMENTS), np.random.default_rng(6))
    store.add_embeddings(
        [(document.page_content, vector) for document, vector in zip(DOCUMENTS, vectors, strict=True)],
        [document.metadata for document in DOCUMENTS],
    )
    return store


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({}, "01234"),
        ({"source": "a"}, "0"),
        ({"source": ["a", "b"]}, "01"),
        ({"source": ("a", "z")}, "0"),
        ({"source": {"$in": {"b", "c"}}}, "12"),
        ({"source": []}, ""),
        ({"source": {"$nin": ["a"]}}, "1234"),
        ({"source": {"$ne": "a"}}, "1234"),
        ({"source": None}, "3"),
        ({"source": {"$eq": None}}, "3"),
        ({"year": 2021}, "1"),
        ({"year": {"$gte": 2020}}, "01"),
        ({"year": {"$gt": 2020, "$lte": 2021}}, "1"),
        ({"year": {"$lt": "3"}}, "2"),
        ({"year": {"$not": {"$gt": 2020}}}, "0234"),
        ({"flag": True}, "2"),
        ({"flag": {"$ne": True}}, "0134"),
        ({"tags": {"$eq": ["x", "y"]}}, "0"),
        ({"tags": {"$in": [[], "x"]}}, "1"),
        ({"nested": {"n": [1.0]}}, "1"),
        ({"nested": {"n": [2]}}, ""),
        ({"at": date(2026, 1, 2)}, "0"),
        ({"at": {"$gte": date(2025, 12, 31)}}, "0"),
        ({"year": np.int64(2020)}, "0"),
        ({"year": float("nan")}, ""),
        ({"nothing": None}, ""),
        ({"nothing": {"$ne": 1}}, "01234"),
        ({"source": "a", "year": 2021}, ""),
        ({"$and": [{"source": ["a", "b"]}, {"year": {"$lt": 2021}}]}, "0"),
        ({"$or": [{"source": "a"}, {"flag": True}], "year": 2020}, "0"),
        ({"$not": {"source": ["a", "b", "c"]}}, "34"),
        ({"$not": {"$or": [{"source": "a"}, {"$and": [{"flag": True}]}]}}, "134"),
    ],
)
def test_operators(documents, filter, expected):
    query = unit(1, np.random.default_rng(7))[0]
    found = documents.similarity_search_by_vector(query, k=9, filter=filter)
    assert sorted(document.page_content for document in found) == sorted(expected)


@pytest.mark.parametrize(
    ("filter", "kind", "message"),
    [
        ({"a": {"$regex": "x"}}, ValueError, r"filter\['a'\]\['\$regex'\]: there is no operator '\$regex' here, only"),
        ({"$nor": [{"a": 1}]}, ValueError, r"no operator '\$nor' here, only \$and, \$or and \$not"),
        ({"a": {"$eq": 1, "b": 2}}, ValueError, "has operators and other names: '\\$eq', 'b'"),
        ({"a": {"$in": "abc"}}, TypeError, r"filter\['a'\]\['\$in'\] must be a list, got 'abc'"),
        ({"a": {"$gt": None}}, TypeError, "must be a number or a string, got None"),
        ({"$or": []}, TypeError, r"filter\['\$or'\] must be a list of one filter or more"),
        ({"$and": {"a": 1}}, TypeError, "must be a list of one filter or more"),
        ({"$and": [{"a": 1}, "b"]}, TypeError, r"filter\['\$and'\]\[1\] must be a function or a dictionary, got 'b'"),
        ({1: 2}, TypeError, "a field's name must be a string, got 1"),
        ({"a": object()}, TypeError, "which can't be saved"),
        ("a", TypeError, "filter must be a function or a dictionary, got 'a'"),
        ([("a", 1)], TypeError, "filter must be a function or a dictionary"),
    ],
)
def test_filters_that_are_refused(documents, filter, kind, message):
    with pytest.raises(kind, match=message):
        documents.similarity_search("never embedded", filter=filter)


def test_a_filter_function_may_use_the_store(documents, caplog):
    def allowed(document):
        again = documents.get_by_ids([document.id])
        in_another_thread = []
        thread = threading.Thread(target=lambda: in_another_thread.extend(documents.get_by_ids([document.id])))
        thread.start()
        thread.join(10)
        return again == in_another_thread and document.metadata.get("source") in ("a", "b")

    query = unit(1, np.random.default_rng(8))[0].tolist()
    with caplog.at_level(logging.INFO):
        found = documents.similarity_search_by_vector(query, k=9, filter=allowed)
    assert {document.page_content for document in found} == {"0", "1"}
    assert "asked about 5 documents" in caplog.text
    found = asyncio.run(documents.asimilarity_search_by_vector(query, k=9, filter=allowed))
    assert {document.page_content for document in found} == {"0", "1"}


def test_a_filter_function_that_deletes_what_it_is_asked_about(documents):
    def allowed(document):
        documents.delete([document.id] if document.page_content == "0" else [])
        return True

    query = unit(1, np.random.default_rng(8))[0].tolist()
    assert {found.page_content for found in documents.similarity_search_by_vector(query, k=9, filter=allowed)} == {
        *"1234"
    }


def test_rows_that_an_interrupted_call_left_are_found_by_nobody(documents):
    documents.index.add(unit(2, np.random.default_rng(9)))
    query = unit(1, np.random.default_rng(8))[0].tolist()
    assert len(documents.similarity_search_by_vector(query, k=9)) == 5
    documents.add_embeddings([("5", unit(1, np.random.default_rng(10))[0])])
    assert len(documents.similarity_search_by_vector(query, k=9, filter={"source": {"$ne": "a"}})) == 5


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["add", "set_alive", "compacted"])
def test_an_interrupt_leaves_a_store_that_works(documents, monkeypatch, method):
    query = unit(1, np.random.default_rng(8))[0].tolist()
    vectors = unit(9, np.random.default_rng(11))
    ids = [document.id for document in documents.similarity_search_by_vector(query, k=9)]
    call = {"compacted": lambda: documents.delete(ids[1:])}.get(
        method, lambda: documents.add_embeddings([("new", vector) for vector in vectors])
    )
    with monkeypatch.context() as patch:
        patch.setattr(vector_rows.VectorRows, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
    found = documents.similarity_search_by_vector(query, k=99, filter={"source": {"$ne": "z"}})
    assert {document.id for document in found} == ({ids[0]} if method == "compacted" else {*ids})
    documents.add_embeddings([("new", vector) for vector in vectors], ids=map(str, range(9)))
    assert len(documents.similarity_search_by_vector(query, k=99, filter={"source": {"$nin": ["z"]}})) == len(found) + 9


def test_a_search_during_a_rebuild_waits_for_it(documents, monkeypatch):
    query = unit(1, np.random.default_rng(8))[0].tolist()
    ids = [document.id for document in documents.similarity_search_by_vector(query, k=9)]
    found, threads, put = [], [], vector_rows.VectorRows.compacted

    def compacted(rows):
        thread = threading.Thread(target=lambda: found.extend(documents.similarity_search_by_vector(query, k=9)))
        thread.start()
        threads.append(thread)
        return put(rows)

    monkeypatch.setattr(vector_rows.VectorRows, "compacted", compacted)
    documents.delete(ids[1:])
    for thread in threads:
        thread.join(30)
    assert [document.id for document in found] == ids[:1]


def test_times_are_compared_in_one_zone():
    store = Qwen3VectorStore(Unused())
    east = timezone(timedelta(hours=5))
    times = [datetime(2026, 1, 1, 4, tzinfo=east), datetime(2026, 1, 1, tzinfo=timezone.utc)]
    store.add_embeddings(
        [("", v) for v in unit(2, np.random.default_rng(12))], [{"at": one} for one in times], ids=[*"ab"]
    )
    query = unit(1, np.random.default_rng(8))[0].tolist()

    def search(condition):
        return {found.id for found in store.similarity_search_by_vector(query, filter={"at": condition})}

    assert search({"$lt": times[1]}) == {"a"}
    assert search({"$eq": datetime(2026, 1, 1, 5, tzinfo=east)}) == {"b"}


def test_an_async_filter_function_is_refused(documents):
    async def allowed(document):
        return False

    with pytest.raises(TypeError, match="must not be async"):
        documents.similarity_search("never embedded", filter=allowed)


def test_a_vector_of_any_length_counts_by_its_direction():
    store = Qwen3VectorStore(Unused())
    vectors = unit(3, np.random.default_rng(13))
    lengths = np.array([[1e-25], [1e25], [1]])
    store.add_embeddings(list(zip("abc", vectors.astype(np.float64) * lengths, strict=True)))
    for vector, text in zip(vectors, "abc", strict=True):
        [(found, score)] = store.similarity_search_with_score_by_vector(vector * np.float32(1e-3), k=1)
        assert found.page_content == text
        assert score == pytest.approx(1, abs=ROUNDING)
    store.add_embeddings([("zero", np.zeros(DIMENSIONS))])
    assert len(store.max_marginal_relevance_search_by_vector(vectors[0], k=4)) == 4
    assert len(store.max_marginal_relevance_search_by_vector(np.zeros(DIMENSIONS), k=2)) == 2
