"""The LangChain vector store in LangChain's own machinery: indexing, retrievers, caches, copies, and odd arguments."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, time, timedelta, timezone
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.indexes import VectorstoreIndexCreator
from langchain_classic.retrievers import (
    EnsembleRetriever,
    MultiVectorRetriever,
    ParentDocumentRetriever,
    TimeWeightedVectorStoreRetriever,
)
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.example_selectors import MaxMarginalRelevanceExampleSelector, SemanticSimilarityExampleSelector
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.stores import InMemoryByteStore, InMemoryStore

from qwen3_embed_integrations.bulk import embed_files
from qwen3_embed_integrations.index_file import FingerprintError
from qwen3_embed_integrations.langchain import Qwen3Embeddings, Qwen3TextSplitter
from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
from qwen3_embed_integrations.matryoshka import two_stage_index
from qwen3_embed_integrations.quantization import Quantizer

TEXTS = ["Copy a directory tree.", "Compute a square root.", "Parse the command line.", "Read a file line by line."]
QUESTION = "how do I copy a folder?"


@pytest.fixture(scope="module")
def embeddings():
    return Qwen3Embeddings(model="tiny", dtype="float32")


@pytest.fixture
def store(embeddings):
    return Qwen3VectorStore.from_texts(TEXTS, embeddings, [{"n": place} for place in range(4)], ids=list("abcd"))


@pytest.fixture(scope="module")
def cosines(embeddings):
    """Of each text with the question, from the vectors themselves."""
    return np.array(embeddings.embed_documents(TEXTS)) @ np.array(embeddings.embed_query(QUESTION))


def texts_of(documents):
    return [document.page_content for document in documents]


def ids_of(documents):
    return [document.id for document in documents]


def everything(store):
    return {(found.id, found.page_content) for found in store.similarity_search(QUESTION, k=10**6)}


# LangChain's indexing


def sources(**texts):
    return [Document(text, metadata={"source": source}) for source, text in texts.items()]


def run_index(*arguments, **options):
    return index(*arguments, **options, source_id_key="source", key_encoder="sha256")


def run_aindex(*arguments, **options):
    return asyncio.run(aindex(*arguments, **options, source_id_key="source", key_encoder="sha256"))


def counts(**given):
    return {**dict.fromkeys(("num_added", "num_updated", "num_skipped", "num_deleted"), 0), **given}


@pytest.mark.parametrize("run", [run_index, run_aindex])
@pytest.mark.parametrize("cleanup", ["incremental", "scoped_full", "full"])
def test_indexing(embeddings, run, cleanup):
    store = Qwen3VectorStore(embeddings)
    manager = InMemoryRecordManager("test")
    manager.create_schema()
    first = sources(a=TEXTS[0], b=TEXTS[1], c=TEXTS[2])
    assert run(first, manager, store, cleanup=cleanup) == counts(num_added=3)
    assert run(first, manager, store, cleanup=cleanup) == counts(num_skipped=3)
    assert len(store) == 3
    # b is another text now, and c is gone, which only "full" takes as deleted.
    changed = run(sources(a=TEXTS[0], b=TEXTS[3]), manager, store, cleanup=cleanup)
    removed = 2 if cleanup == "full" else 1
    assert changed == counts(num_added=1, num_skipped=1, num_deleted=removed)
    left = {TEXTS[0], TEXTS[3]} | ({TEXTS[2]} if cleanup != "full" else set())
    assert {text for _, text in everything(store)} == left
    assert texts_of(store.similarity_search(QUESTION, k=1)) == [TEXTS[0]]
    assert texts_of(store.similarity_search(QUESTION, filter={"source": "b"})) == [TEXTS[3]]


def test_indexing_again_by_force_replaces(embeddings):
    store = Qwen3VectorStore(embeddings)
    manager = InMemoryRecordManager("test")
    manager.create_schema()
    for expected in (counts(num_added=2), counts(num_updated=2), counts(num_updated=2)):
        assert run_index(sources(a=TEXTS[0], b=TEXTS[1]), manager, store, force_update=True, batch_size=1) == expected
    assert len(store) == 2


# Retrievers


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("passes_time", [False, True])
def test_time_weighted_retriever(embeddings, cosines, passes_time, is_async):
    now = datetime.now()
    old = {"last_accessed_at": now - timedelta(hours=50)}
    documents = [Document(TEXTS[0], metadata=old), *(Document(text) for text in TEXTS[1:])]
    given = {"current_time": now} if passes_time else {}

    def found(decay_rate):
        retriever = TimeWeightedVectorStoreRetriever(
            vectorstore=Qwen3VectorStore(embeddings), decay_rate=decay_rate, k=4
        )
        if not is_async:
            retriever.add_documents(documents, **given)
            return retriever.invoke(QUESTION)

        async def run():
            await retriever.aadd_documents(documents, **given)
            return await retriever.ainvoke(QUESTION)

        return asyncio.run(run())

    by_similarity = [TEXTS[place] for place in np.argsort(-cosines)]
    assert by_similarity[0] == TEXTS[0]
    kept = found(1e-9)
    assert texts_of(kept) == by_similarity
    assert all(isinstance(document.metadata["created_at"], datetime) for document in kept)
    assert texts_of(found(0.5)) == [*by_similarity[1:], TEXTS[0]]
    assert documents[0].metadata == old


@pytest.mark.parametrize(
    ("search_type", "options"),
    [("similarity", {}), ("mmr", {}), ("similarity_score_threshold", {"score_threshold": 0.1})],
)
def test_parent_document_retriever(embeddings, search_type, options):
    parents = [" ".join([text] * 20) for text in TEXTS]
    store = Qwen3VectorStore(embeddings)
    retriever = ParentDocumentRetriever(
        vectorstore=store,
        docstore=InMemoryStore(),
        child_splitter=Qwen3TextSplitter(model="tiny", chunk_size=32, chunk_overlap=0),
        search_type=search_type,
        search_kwargs={"k": 3, **options},
    )
    retriever.add_documents([Document(text) for text in parents])
    assert len(store) > 2 * len(parents)
    assert retriever.invoke(QUESTION)[0].page_content == parents[0]
    assert asyncio.run(retriever.ainvoke(QUESTION))[0].page_content == parents[0]


def test_multi_vector_retriever(embeddings):
    store = Qwen3VectorStore(embeddings)
    retriever = MultiVectorRetriever(vectorstore=store, docstore=InMemoryStore(), search_kwargs={"k": 1})
    keys = [UUID(int=place) for place in range(4)]
    store.add_documents(Document(text, metadata={"doc_id": str(key)}) for text, key in zip(TEXTS, keys, strict=True))
    retriever.docstore.mset([(str(key), Document(text.upper())) for text, key in zip(TEXTS, keys, strict=True)])
    assert texts_of(retriever.invoke(QUESTION)) == [TEXTS[0].upper()]


def test_search_kwargs_of_a_retriever(store, cosines):
    def found(search_type="similarity", **options):
        return ids_of(store.as_retriever(search_type=search_type, search_kwargs=options).invoke(QUESTION))

    ranked = ["abcd"[place] for place in np.argsort(-cosines)]
    second = float(np.sort(cosines)[-2])
    assert found() == ranked
    assert found(k=2) == ranked[:2]
    assert found(k=3, fetch_k=1) == ranked[:3]
    assert found(score_threshold=second - 0.01) == ranked[:2]
    assert found(score_threshold=second + 0.01) == ranked[:1]
    assert found(score_threshold=0.999) == []
    assert found(filter={"n": [1, 2]}, fetch_k=20, k=1) == [one for one in ranked if one in "bc"][:1]
    assert found(filter=lambda document: document.metadata["n"] > 1) == [one for one in ranked if one in "cd"]
    assert found("similarity_score_threshold", score_threshold=second - 0.01, fetch_k=20) == ranked[:2]
    assert (
        found("similarity_score_threshold", score_threshold=0.0, k=2, filter={"n": {"$lt": 3}})
        == [one for one in ranked if one != "d"][:2]
    )
    assert found("mmr", k=4, fetch_k=1) == found("mmr", k=4)
    assert found("mmr", k=2, lambda_mult=1.0, filter={"n": [1, 2, 3]}) == [one for one in ranked if one != "a"][:2]
    assert found("mmr", k=4, score_threshold=second - 0.01) == ranked[:2]
    for wrong in ("0.5", float("nan")):
        with pytest.raises(ValueError, match="score_threshold must be a number, got"):
            found(score_threshold=wrong)
    for wrong in ("0.5", 2, -0.1, float("nan"), None):
        with pytest.raises(ValueError, match="lambda_mult must be a number from 0 to 1, got"):
            found("mmr", lambda_mult=wrong)
    assert found(lambda_mult=0.5, k=2) == ranked[:2]


def test_other_ways_to_search(store, cosines):
    ranked = ["abcd"[place] for place in np.argsort(-cosines)]
    retriever = store.as_retriever(search_kwargs={"k": 2})
    assert [ids_of(found) for found in retriever.batch([QUESTION, QUESTION])] == [ranked[:2]] * 2
    assert ids_of(retriever.invoke(QUESTION, k=3)) == ranked[:3]
    assert asyncio.run(retriever.abatch([QUESTION])) == [retriever.invoke(QUESTION)]
    assert ids_of(store.search(QUESTION, "similarity", k=3)) == ranked[:3]
    assert ids_of(store.search(QUESTION, "mmr", k=1)) == ranked[:1]
    threshold = float(np.sort(cosines)[-2]) - 0.01
    assert ids_of(store.search(QUESTION, "similarity_score_threshold", score_threshold=threshold)) == ranked[:2]
    scored = store.similarity_search_with_relevance_scores(QUESTION, k=4)
    np.testing.assert_allclose([score for _, score in scored], np.sort(cosines)[::-1].clip(0, 1), atol=1e-3)
    both = EnsembleRetriever(retrievers=[retriever, store.as_retriever(search_type="mmr", search_kwargs={"k": 1})])
    assert ids_of(both.invoke(QUESTION)) == ranked[:2]


class Loader(BaseLoader):
    def lazy_load(self):
        yield from (Document(text, metadata={"n": place}) for place, text in enumerate(TEXTS))


def test_what_loads_and_chooses_with_a_store(embeddings, cosines):
    made = VectorstoreIndexCreator(vectorstore_cls=Qwen3VectorStore, embedding=embeddings).from_loaders([Loader()])
    assert {text for _, text in everything(made.vectorstore)} == set(TEXTS)
    ranked = [TEXTS[place] for place in np.argsort(-cosines)]
    assert texts_of(made.vectorstore.similarity_search(QUESTION)) == ranked
    for kind in (SemanticSimilarityExampleSelector, MaxMarginalRelevanceExampleSelector):
        examples = [{"question": text} for text in TEXTS[1:]]
        selector = kind.from_examples(examples, embeddings, Qwen3VectorStore, k=1, input_keys=["question"])
        selector.add_example({"question": TEXTS[0]})
        assert selector.select_examples({"question": QUESTION}) == [{"question": TEXTS[0]}]


def test_async_methods_give_what_the_others_give(embeddings, store):
    vector = embeddings.embed_query(QUESTION)
    documents = [Document(text, metadata={"n": place}, id="abcd"[place]) for place, text in enumerate(TEXTS)]

    async def made():
        texts = await Qwen3VectorStore.afrom_texts(TEXTS, embeddings, [{"n": n} for n in range(4)], ids=list("abcd"))
        from_documents = await Qwen3VectorStore.afrom_documents(iter(documents), embeddings)
        added = Qwen3VectorStore(embeddings)
        assert await added.aadd_texts(iter(TEXTS[:2]), ({"n": n} for n in range(2)), ids=iter("ab")) == ["a", "b"]
        assert await added.aadd_documents(iter(documents[2:]), batch_size=1) == ["c", "d"]
        return texts, from_documents, added

    async def searched(other):
        query = {"query": QUESTION, "k": 3, "filter": {"n": {"$ne": 1}}}
        assert await other.asimilarity_search(**query) == store.similarity_search(**query)
        scored = await other.asimilarity_search_with_score(**query)
        relevant = await other.asimilarity_search_with_relevance_scores(**query)
        right = store.similarity_search_with_score(**query)
        # Vectors of texts that were added in other company differ by rounding.
        for found in (scored, relevant):
            assert [document for document, _ in found] == [document for document, _ in right]
            np.testing.assert_allclose([score for _, score in found], [score for _, score in right], atol=1e-3)
        assert await other.asimilarity_search_by_vector(vector) == store.similarity_search_by_vector(vector)
        diverse = await other.amax_marginal_relevance_search(**query, lambda_mult=0.3)
        assert diverse == store.max_marginal_relevance_search(**query, lambda_mult=0.3)
        by_vector = await other.amax_marginal_relevance_search_by_vector(vector, k=2)
        assert by_vector == store.max_marginal_relevance_search_by_vector(vector, k=2)
        assert await other.asearch(QUESTION, "mmr") == store.search(QUESTION, "mmr")
        assert await other.aget_by_ids(iter("dxa")) == store.get_by_ids(["d", "a"])
        assert await other.adelete(iter("ax"))
        assert {found.id for found in await other.asimilarity_search(QUESTION, k=9)} == set("bcd")
        assert await other.adelete()
        assert len(other) == 0

    for other in asyncio.run(made()):
        asyncio.run(searched(other))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda store: store.aadd_texts(["a"], ids="a"),
        lambda store: store.aadd_documents([Document("a")], nonsense=1),
        lambda store: store.adelete("abc"),
        lambda store: store.aget_by_ids("abc"),
        lambda store: store.asimilarity_search("a", nonsense=1),
        lambda store: store.amax_marginal_relevance_search("a", nonsense=1),
    ],
)
def test_async_methods_refuse_what_the_others_refuse(store, wrong):
    with pytest.raises(TypeError, match=r"takes no nonsense|ids must be a list of strings"):
        asyncio.run(wrong(store))
    assert len(store) == 4


# Copies


COPIES = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "retriever's pickle": lambda one: pickle.loads(pickle.dumps(one.as_retriever())).vectorstore,
    "retriever's deepcopy": lambda one: copy.deepcopy(one.as_retriever()).vectorstore,
    "retriever's deep model_copy": lambda one: one.as_retriever().model_copy(deep=True).vectorstore,
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_a_store_of_its_own(store, way):
    store.delete(["b"])
    copied = COPIES[way](store)
    assert type(copied) is Qwen3VectorStore
    assert copied.similarity_search_with_score(QUESTION, k=9) == store.similarity_search_with_score(QUESTION, k=9)
    assert copied.index is not store.index
    before = everything(store)
    copied.add_texts(["Only in the copy."], ids=["e"])
    copied.add_texts(["Replaced in the copy."], ids=["c"])
    copied.delete(["a"])
    assert everything(store) == before
    store.add_texts(["Only in the first."], ids=["f"])
    assert {id_ for id_, _ in everything(copied)} == set("cde")
    assert {id_ for id_, _ in everything(store)} == set("acdf")
    assert store.similarity_search("Only in the first.", k=1)[0].id == "f"
    assert copied.similarity_search("Only in the copy.", k=1)[0].id == "e"


def test_a_retrievers_shallow_copy_has_the_same_store(store):
    retriever = store.as_retriever(search_kwargs={"k": 9})
    copied = retriever.model_copy(update={"search_type": "mmr"})
    assert copied.vectorstore is store
    store.add_texts(["new"], ids=["e"])
    assert len(copied.invoke(QUESTION)) == 5
    assert copied.search_type == "mmr"


@pytest.mark.parametrize(
    "index",
    [
        two_stage_index(256, 32, neighbors=8),
        faiss.IndexFlatIP(256),
        faiss.IndexHNSWFlat(256, 8, faiss.METRIC_INNER_PRODUCT),
    ],
)
def test_copies_of_other_indexes_and_of_empty_stores(embeddings, index):
    store = Qwen3VectorStore(embeddings, index)
    copied = copy.deepcopy(store)
    assert type(copied.index) is type(index)
    assert len(copied) == 0
    copied.add_texts(TEXTS)
    assert texts_of(copy.copy(copied).similarity_search(QUESTION, k=1)) == [TEXTS[0]]
    assert len(store) == 0


def test_a_copy_keeps_the_settings_of_the_index(store):
    store.index.k_factor, store.index.graph.hnsw.efSearch = 7, 77
    copied = copy.deepcopy(store)
    assert (copied.index.k_factor, copied.index.graph.hnsw.efSearch) == (7, 77)


class Emptying(DeterministicFakeEmbedding):
    """Empties a store at the moment when it is pickled itself, as another thread might."""

    store: Any = None

    def __reduce__(self):
        self.store.delete()
        return partial(DeterministicFakeEmbedding, size=16), ()


def test_a_pickle_is_of_one_moment():
    embedding = Emptying(size=16)
    store = Qwen3VectorStore(embedding, two_stage_index(16))
    store.add_texts(TEXTS, ids=list("abcd"))
    expected = everything(store)
    embedding.store = store
    copied = pickle.loads(pickle.dumps(store))
    assert len(store) == 0
    assert everything(copied) == expected


def test_a_pickle_holds_no_key():
    remote = Qwen3Embeddings(model="org/model", base_url="http://127.0.0.1:9", api_key="sk-secret-1", dimensions=8)
    store = Qwen3VectorStore.from_embeddings([("a", [1.0] + [0.0] * 7)], remote)
    for content in (pickle.dumps(store), pickle.dumps(store.as_retriever())):
        assert b"sk-secret-1" not in content
    loaded = pickle.loads(pickle.dumps(store))
    assert texts_of(loaded.similarity_search_by_vector([1.0] + [0.0] * 7)) == ["a"]
    assert loaded.embeddings.encoder.fingerprint == remote.encoder.fingerprint


def test_a_store_is_pickled_while_threads_use_it(embeddings):
    vectors = np.random.default_rng(0).standard_normal((600, 256)).astype(np.float32)
    store = Qwen3VectorStore(embeddings)

    def add_and_delete(start):
        for number in range(start, len(vectors), 3):
            store.add_embeddings([(str(number), vectors[number])], ids=[str(number)])
            if number % 4 == 0:
                store.delete([str(number - 3)])

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(add_and_delete, start) for start in range(3)]
        while not all(one.done() for one in running):
            copied = pickle.loads(pickle.dumps(store))
            found = copied.similarity_search_by_vector(vectors[0], k=10**6) if len(copied) else []
            assert len(found) == len(copied)
            for document in found[:20]:
                nearest = copied.similarity_search_with_score_by_vector(vectors[int(document.page_content)], k=1)
                assert nearest[0][0].id == document.id
                assert nearest[0][1] == pytest.approx(1, abs=1e-3)
        for one in running:
            one.result()
    assert everything(copy.copy(store)) == everything(store)


# Ids, generators, lengths


def test_generators(embeddings):
    documents = [Document(text, id=id_, metadata={"n": id_}) for text, id_ in zip(TEXTS, "abcd", strict=True)]
    expected = {(document.id, document.page_content) for document in documents}
    pairs = zip(TEXTS, embeddings.embed_documents(TEXTS), strict=True)
    made = [
        Qwen3VectorStore.from_texts(iter(TEXTS), embeddings, ({"n": id_} for id_ in "abcd"), ids=iter("abcd")),
        Qwen3VectorStore.from_documents(iter(documents), embeddings),
        Qwen3VectorStore.from_documents(iter(documents), embeddings, ids=iter("abcd"), index=two_stage_index(256)),
        Qwen3VectorStore.from_embeddings(pairs, embeddings, ({"n": id_} for id_ in "abcd"), ids=iter("abcd")),
    ]
    for store in made:
        assert everything(store) == expected
        assert [found.metadata for found in store.get_by_ids(iter("ba"))] == [{"n": "b"}, {"n": "a"}]
        assert store.add_texts(iter(["x"]), iter([{}]), ids=iter("e")) == ["e"]
        assert store.add_documents(Document(text) for text in TEXTS[:1]) != ["a"]
        store.delete(iter("abe"))
        assert len(store) == 3


def test_ids_that_are_numbers(embeddings):
    store = Qwen3VectorStore(embeddings)
    assert store.add_texts(TEXTS[:2], ids=[0, 1]) == ["0", "1"]
    assert store.add_documents([Document(text) for text in TEXTS[2:]], ids=np.arange(2, 4)) == ["2", "3"]
    assert texts_of(store.get_by_ids([0, np.int32(3), "1"])) == [TEXTS[0], TEXTS[3], TEXTS[1]]
    store.add_texts(["again"], ids=[0])
    assert texts_of(store.get_by_ids(["0"])) == ["again"]
    assert len(store) == 4
    store.delete([0, np.int64(1)])
    assert {id_ for id_, _ in everything(store)} == {"2", "3"}


def test_ids_that_are_empty_or_missing(embeddings):
    store = Qwen3VectorStore(embeddings)
    assert store.add_texts(["a"], ids=[""]) == [""]
    assert texts_of(store.get_by_ids([""])) == ["a"]
    store.add_documents([Document("b", id="")])
    assert everything(store) == {("", "b")}
    first, second = store.add_documents([Document("c"), Document("d", id="own")], ids=[None, "given"])
    assert second == "given"
    assert texts_of(store.get_by_ids([first, "own"])) == ["c"]
    store.delete([""])
    assert len(store) == 2
    made = Qwen3VectorStore.from_documents([Document("a", id=""), Document("b")], embeddings)
    assert texts_of(made.get_by_ids([""])) == ["a"]


@pytest.mark.parametrize("wrong", [True, np.True_, 1.5, b"a", ("a",)])
def test_ids_of_other_types_are_refused(store, wrong):
    for call in (
        lambda: store.add_texts(["x", "y"], ids=["e", wrong]),
        lambda: store.get_by_ids(["a", wrong]),
        lambda: store.delete(["a", wrong]),
    ):
        with pytest.raises(TypeError, match="the id at index 1 must be a string, got"):
            call()
    assert ids_of(store.get_by_ids(list("abcde"))) == list("abcd")


@pytest.mark.parametrize("wrong", ["abc", b"abc", 5])
def test_no_string_is_taken_for_a_list_of_ids(store, wrong):
    for call in (
        lambda: store.delete(wrong),
        lambda: store.get_by_ids(wrong),
        lambda: store.add_texts(["x"], ids=wrong),
        lambda: store.add_documents([Document("x")], ids=wrong),
        lambda: store.add_embeddings([("x", [1.0] * 256)], ids=wrong),
    ):
        with pytest.raises(TypeError, match="ids must be a list of strings, got"):
            call()
    assert len(store) == 4


def test_the_length_and_an_empty_store(embeddings):
    store = Qwen3VectorStore(embeddings)
    assert len(store) == 0
    assert store
    assert store.add_texts([]) == store.add_documents([]) == store.add_embeddings([]) == []
    assert store.similarity_search("a") == store.max_marginal_relevance_search("a") == []
    store.add_texts(["a", "b", "a"], ids=["a", "b", "a"])
    assert len(store) == 2
    store.delete()
    assert len(store) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.add_texts("abc"), "texts must be a list of strings"),
        (lambda store: store.add_texts(["a", 1]), "index 1"),
        (lambda store: store.add_texts(["a"], "m"), "metadatas must be a list of dictionaries"),
        (lambda store: store.add_texts(["a"], [None]), "the metadata at index 0 must be a dictionary"),
        (lambda store: store.add_documents([Document("a"), "b"]), "the item at index 1 must be a Document, got str"),
        (lambda store: store.add_documents([Document("a")], nonsense=1), "takes no nonsense"),
    ],
)
def test_wrong_items_are_named(store, call, message):
    with pytest.raises(TypeError, match=message):
        call(store)
    assert len(store) == 4


# Vectors that are there already


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """What `qwen3-embed embed` wrote of the texts."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "texts.jsonl").write_text(
        "".join(f'{{"id": "{id_}", "text": "{text}"}}\n' for id_, text in zip("abcd", TEXTS, strict=True))
    )
    embed_files(folder / "texts.jsonl", folder / "vectors", model="tiny", dtype="float32", show_progress=False)
    return pq.read_table(folder / "vectors")


@pytest.mark.parametrize("kind", ["lists", "float32", "float64", "float16", "tensors", "of another length"])
def test_vectors_that_embed_wrote(embedded, embeddings, store, kind):
    vectors = np.stack(embedded["embedding"].to_numpy())
    given = {
        "lists": embedded["embedding"].to_pylist(),
        "float32": vectors,
        "float64": vectors.astype(np.float64),
        "float16": vectors.astype(np.float16),
        "tensors": torch.from_numpy(vectors),
        "of another length": 7 * vectors,
    }[kind]
    texts, ids = embedded["text"].to_pylist(), embedded["id"].to_pylist()
    made = Qwen3VectorStore.from_embeddings(
        zip(texts, given, strict=True), embeddings, [{"n": place} for place in range(4)], ids=ids
    )
    added = Qwen3VectorStore(embeddings)
    assert added.add_embeddings(zip(texts, given, strict=True), ids=ids) == ids
    expected = store.similarity_search_with_score(QUESTION)
    assert made.similarity_search(QUESTION) == [document for document, _ in expected]
    for found in (made, added):
        scores = [score for _, score in found.similarity_search_with_score(QUESTION)]
        np.testing.assert_allclose(scores, [score for _, score in expected], atol=1e-3)
    added.add_embeddings([("new", given[0])], ids=["b"])
    assert len(added) == 4
    assert texts_of(added.get_by_ids(["b"])) == ["new"]


def test_codes_are_no_vectors(embedded, embeddings):
    vectors = np.stack(embedded["embedding"].to_numpy())
    codes = Quantizer.calibrated(vectors, "int8").quantize(vectors)
    for given in (codes, codes.tolist(), codes.view(np.uint8)):
        with pytest.raises(ValueError, match=r"the vector at index 0 is of whole numbers.*Quantizer\.scores"):
            Qwen3VectorStore.from_embeddings(zip(TEXTS, given, strict=True), embeddings)


UNIT = [1.0] + [0.0] * 255


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", UNIT), ("b", UNIT[:5])], "the vector at index 1 has 5 dimensions, and the index 256"),
        ([("a", UNIT), ("b", [*UNIT, 0.0])], "the vector at index 1 has 257 dimensions"),
        ([("a", UNIT), ("b", [])], "the vector at index 1"),
        ([("a", UNIT), ("b", [float("nan")] * 256)], "the vector at index 1 has a number that is not finite"),
        ([("a", UNIT), ("b", [float("-inf"), *UNIT[1:]])], "the vector at index 1 has a number that is not finite"),
        ([("a", UNIT), ("b", None)], "the vector at index 1 must be 256 numbers, got NoneType"),
        ([("a", UNIT), ("b", "0.5" * 256)], "the vector at index 1 must be 256 numbers, got str"),
        ([("a", UNIT), ("b", ["0.5"] * 256)], "the vector at index 1 must be 256 numbers"),
        ([("a", UNIT), ("b", [None] * 256)], "the vector at index 1 must be 256 numbers"),
        (
            [("a", UNIT), ("b", [[1.0]] * 256)],
            r"the vector at index 1 must be 256 numbers, got list of shape \(256, 1\)",
        ),
        ([("a", UNIT), ("b", [[1.0], 2.0] * 128)], "the vector at index 1 must be 256 numbers"),
        ([("a", UNIT), ("b", np.ones(256, dtype=np.complex64))], "the vector at index 1 must be 256 numbers"),
        ([("a", UNIT), "bc"], "the item at index 1 must be a pair of a text and its vector, got 'bc'"),
        ([("a", UNIT), ("b", UNIT, {})], "the item at index 1 must be a pair"),
        ([("a", UNIT), (UNIT, "b")], "the item at index 1 must be a pair"),
        ([("a", UNIT), None], "the item at index 1 must be a pair"),
        ({"a": UNIT}, "the item at index 0 must be a pair"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_vector_is_refused_with_its_place(store, pairs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        store.add_embeddings(pairs)
    assert len(store) == 4
    assert store.index.ntotal == 4


def test_as_many_metadatas_and_ids_as_vectors(store):
    with pytest.raises(ValueError, match="metadatas must be one per text, got 2 for 1"):
        store.add_embeddings([("a", UNIT)], [{}, {}])
    with pytest.raises(ValueError, match="ids must be one per document, got 2 for 1"):
        store.add_embeddings([("a", UNIT)], ids=["a", "b"])
    with pytest.raises(ValueError, match="the query's vector has 2 dimensions, and the index 256"):
        store.similarity_search_by_vector([1.0, 0.0])
    assert len(store) == 4


# LangChain's cache


def cached(embeddings, kept=None, **options):
    return CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        InMemoryByteStore() if kept is None else kept,
        namespace=embeddings.encoder.fingerprint,
        key_encoder="sha256",
        **options,
    )


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cache_around_the_embeddings(embeddings, store, tmp_path, is_async):
    kept = InMemoryByteStore()
    arguments = (TEXTS, cached(embeddings, kept), [{"n": place} for place in range(4)])
    if is_async:
        made = asyncio.run(Qwen3VectorStore.afrom_texts(*arguments, ids=list("abcd")))
    else:
        made = Qwen3VectorStore.from_texts(*arguments, ids=list("abcd"))
    assert made.index.d == embeddings.encoder.dimensions
    assert len(list(kept.yield_keys())) == 4
    expected = store.similarity_search_with_score(QUESTION)
    assert made.similarity_search_with_score(QUESTION) == expected
    made.save_local(tmp_path)
    for opened in (cached(embeddings, kept), embeddings):
        assert Qwen3VectorStore.load_local(tmp_path, opened).similarity_search_with_score(QUESTION) == expected
    store.save_local(tmp_path)
    assert (
        Qwen3VectorStore.load_local(tmp_path, cached(embeddings, kept)).similarity_search_with_score(QUESTION)
        == expected
    )
    made.merge_from(Qwen3VectorStore.from_texts(["more"], embeddings, ids=["e"]))
    assert copy.deepcopy(made).similarity_search("more", k=1)[0].id == "e"


def test_a_cache_around_another_model(model_folder, other_folder, tmp_path):
    one, other = (Qwen3Embeddings(model=folder, dtype="float32") for folder in (model_folder, other_folder))
    store = Qwen3VectorStore.from_texts(TEXTS, cached(one), ids=list("abcd"))
    store.save_local(tmp_path)
    for wrong in (cached(other), other):
        with pytest.raises(FingerprintError, match="embed the documents again"):
            Qwen3VectorStore.load_local(tmp_path, wrong)
        with pytest.raises(FingerprintError, match="cannot be compared"):
            store.merge_from(Qwen3VectorStore.from_texts(["more"], wrong))
    assert len(store) == 4
    with pytest.raises(TypeError, match=r"must be one of this package.*DeterministicFakeEmbedding"):
        Qwen3VectorStore(CacheBackedEmbeddings(DeterministicFakeEmbedding(size=6), InMemoryStore()))


def test_a_cache_that_queries_share_with_documents(embeddings, caplog, tmp_path):
    def score_of_itself(store):
        return store.similarity_search_with_score(QUESTION, k=1)[0][1]

    right = score_of_itself(Qwen3VectorStore.from_texts([QUESTION], embeddings))
    # The query's instruction makes another vector of the same text.
    assert right < 0.995
    kept = InMemoryByteStore()
    for options in ({"query_embedding_cache": True}, {"query_embedding_cache": kept}):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            store = Qwen3VectorStore(cached(embeddings, kept, **options))
        assert "give query_embedding_cache a store of its own" in caplog.text
        assert store.similarity_search(QUESTION) == []
        store.add_texts([QUESTION], ids=["a"])
        assert score_of_itself(store) == right
        assert asyncio.run(store.asimilarity_search_with_score(QUESTION))[0][1] == right
        store.save_local(tmp_path)
        assert score_of_itself(Qwen3VectorStore.load_local(tmp_path, store.embeddings)) == right
        assert score_of_itself(copy.copy(store)) == right
    two_layers = CacheBackedEmbeddings(cached(embeddings, query_embedding_cache=True), InMemoryStore())
    assert score_of_itself(Qwen3VectorStore.from_texts([QUESTION], two_layers)) == right
    apart = InMemoryByteStore()
    caplog.clear()
    store = Qwen3VectorStore.from_texts([QUESTION], cached(embeddings, kept, query_embedding_cache=apart))
    assert score_of_itself(store) == score_of_itself(store) == right
    assert len(list(apart.yield_keys())) == 1
    assert not caplog.text


# Several stores


def test_merging(embeddings, store):
    other = Qwen3VectorStore.from_texts(
        ["one", "two", "gone"], embeddings, [{"n": [n]} for n in range(3)], ids=list("efg")
    )
    other.delete(["g"])
    store.delete(["b"])
    store.merge_from(other)
    assert {id_ for id_, _ in everything(store)} == set("acdef")
    assert len(other) == 2
    found, score = store.similarity_search_with_score("one", k=1)[0]
    assert found == Document("one", id="e", metadata={"n": [0]})
    assert score == pytest.approx(other.similarity_search_with_score("one", k=1)[0][1], abs=1e-3)
    store.add_texts(["changed"], ids=["e"])
    store.delete(["f"])
    assert everything(other) == {("e", "one"), ("f", "two")}
    store.merge_from(Qwen3VectorStore(embeddings))
    assert len(store) == 4


def test_what_cannot_be_merged(embeddings, store):
    before = everything(store)
    with pytest.raises(ValueError, match="1 documents are in both stores, 'c' among them"):
        store.merge_from(Qwen3VectorStore.from_texts(["x", "y"], embeddings, ids=["e", "c"]))
    with pytest.raises(ValueError, match="can't be merged with itself"):
        store.merge_from(store)
    for settings in ({"dimensions": 64}, {"document_instruction": "web_search"}):
        other = Qwen3VectorStore.from_texts(["x"], Qwen3Embeddings(model="tiny", dtype="float32", **settings))
        with pytest.raises(FingerprintError, match="cannot be compared"):
            store.merge_from(other)
    with pytest.raises(TypeError, match="only a Qwen3VectorStore can be merged, got list"):
        store.merge_from(["x"])
    assert everything(store) == before
    assert store.index.ntotal == 4


def test_stores_in_one_folder(embeddings, tmp_path):
    names = ["index", "index-2", "v1.2_a", "ż", "index.faiss"]
    stores = {name: Qwen3VectorStore.from_texts([f"in {name}"], embeddings, ids=["a"]) for name in names}
    (tmp_path / "documents-index-notes.txt").write_text("mine")
    (tmp_path / "documents-mine.jsonl.gz").write_text("mine")
    for turn in range(3):
        for name, store in stores.items():
            store.add_texts([f"turn {turn}"], ids=[str(turn)])
            store.save_local(tmp_path, name)
    for name, store in stores.items():
        assert everything(Qwen3VectorStore.load_local(tmp_path, embeddings, index_name=name)) == everything(store)
    # An index, its fingerprint and its documents each, and what was there.
    assert len(list(tmp_path.iterdir())) == 3 * len(names) + 2
    assert everything(Qwen3VectorStore.load_local(tmp_path, embeddings)) == everything(stores["index"])
    with pytest.raises(FileNotFoundError):
        Qwen3VectorStore.load_local(tmp_path, embeddings, "another")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a b", "a\n", "a*", "a\0", None, 5])
def test_odd_names_of_stores_are_refused(store, embeddings, tmp_path, name):
    for call in (store.save_local, lambda folder, name: Qwen3VectorStore.load_local(folder, embeddings, name)):
        with pytest.raises(ValueError, match="index_name must be up to 100 letters, digits"):
            call(tmp_path / "stores", name)
    assert not list(tmp_path.iterdir())


# Metadata


class Color(Enum):
    RED = "red"


class Key(str, Enum):
    NAME = "name"


NESTED = {"list": [1, {"deep": (2, [date(2026, 1, 2)])}]}
PLAIN = {
    "datetime": (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05+00:00"),
    "date": (date(2026, 1, 2), "2026-01-02"),
    "time": (time(1, 2), "01:02:00"),
    "uuid": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "path": (Path("a") / "b", str(Path("a") / "b")),
    "enum": (Color.RED, "red"),
    "str enum": (Key.NAME, "name"),
    "enum as a key": ({Key.NAME: 1}, {"name": 1}),
    "float32": (np.float32(1.5), 1.5),
    "int64": (np.int64(3), 3),
    "numpy's bool": (np.True_, True),
    "numpy's string": (np.str_("a"), "a"),
    "array": (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    "array without axes": (np.array(2.5), 2.5),
    "array of objects": (np.array([date(2026, 1, 2), None], dtype=object), ["2026-01-02", None]),
    "datetime64 of days": (np.datetime64("2026-01-02"), "2026-01-02"),
    "datetime64 of seconds": (np.datetime64("2026-01-02T03:04:05"), "2026-01-02T03:04:05"),
    "datetime64 of pandas": (np.datetime64("2026-01-02T03:04:05", "ns"), "2026-01-02T03:04:05"),
    "datetime64 of nanoseconds": (np.datetime64("2026-01-02T00:00:00.000000001"), "2026-01-02T00:00:00.000000001"),
    "datetime64 beyond Python's": (np.datetime64("12026-01-02"), "12026-01-02"),
    "missing datetime64": (np.datetime64("NaT", "ns"), None),
    "missing datetime64 of days": (np.datetime64("NaT", "D"), None),
    "array of datetime64 without axes": (np.array("2026-01-02", dtype="datetime64[ns]"), "2026-01-02T00:00:00"),
    "array of datetime64": (np.array(["2026-01-02"], dtype="datetime64[ns]"), ["2026-01-02T00:00:00"]),
    "tuple": ((1, (2, "a")), [1, [2, "a"]]),
    "nested": (NESTED, {"list": [1, {"deep": [2, ["2026-01-02"]]}]}),
    "surrogate": ("\ud800", "\ud800"),
    "surrogate as a key": ({"\udfff": 1}, {"\udfff": 1}),
    "separators": ("a\u2028b\0c\n", "a\u2028b\0c\n"),
    "infinity": (float("inf"), float("inf")),
    "large integer": (2**80, 2**80),
    "True": (True, True),
    "None": (None, None),
    "empty": ({"": [], "a": {}}, {"": [], "a": {}}),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_metadata_is_plain_from_the_start_and_after_loading(embeddings, tmp_path, kind):
    given, expected = PLAIN[kind]
    document = Document("a", id="a", metadata={"value": given})
    store = Qwen3VectorStore(embeddings)
    store.add_documents([document])
    assert document.metadata["value"] is given
    found = store.get_by_ids(["a"])[0].metadata["value"]
    assert (found, type(found)) == (expected, type(expected))
    assert repr(found) == repr(expected)
    store.save_local(tmp_path)
    loaded = Qwen3VectorStore.load_local(tmp_path, embeddings)
    assert repr(loaded.get_by_ids(["a"])) == repr(store.get_by_ids(["a"]))
    assert texts_of(loaded.similarity_search("a", filter={"value": {"$eq": given}})) == ["a"]
    assert len(loaded.similarity_search("a", filter=lambda one: one.metadata["value"] == expected)) == 1


def test_metadata_that_is_not_a_number_stays_so(embeddings, tmp_path):
    store = Qwen3VectorStore.from_texts(["a"], embeddings, [{"value": float("nan")}], ids=["a"])
    store.save_local(tmp_path)
    for one in (store, Qwen3VectorStore.load_local(tmp_path, embeddings)):
        assert np.isnan(one.get_by_ids(["a"])[0].metadata["value"])


def test_metadata_is_not_shared_with_what_was_given(embeddings):
    given = {"list": [1], "nested": {"a": [2]}, "tuple": ([3],)}
    store = Qwen3VectorStore.from_texts(["a"], embeddings, [given], ids=["a"])
    given["list"].append(2)
    given["nested"]["a"].append(3)
    given["tuple"][0].append(4)
    for _ in range(2):
        found = store.get_by_ids(["a"])[0].metadata
        assert found == {"list": [1], "nested": {"a": [2]}, "tuple": [[3]]}
        found["list"].append(5)
        found["nested"]["a"].append(5)


class Own:
    pass


CYCLE: dict = {}
CYCLE["self"] = [CYCLE]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"k": {1, 2}}, r"at index 1\['k'\] is \{1, 2\} \(set\), which can't be saved"),
        ({"k": b"a"}, r"at index 1\['k'\] is b'a' \(bytes\)"),
        ({"k": Own()}, r"at index 1\['k'\] is .*\(Own\)"),
        ({"k": [0, {"a": Own}]}, r"at index 1\['k'\]\[1\]\['a'\] is .*\(type\)"),
        ({1: 2}, r"at index 1 has the key 1 \(int\): keys must be strings"),
        ({"k": {1: 2}}, r"at index 1\['k'\] has the key 1 \(int\): keys must be strings"),
        ({"k": [{None: 2}]}, r"at index 1\['k'\]\[0\] has the key None"),
        ({"k": timedelta(1)}, r"\(timedelta\)"),
        ({"k": np.timedelta64(1, "ns")}, r"\(timedelta64\)"),
        ({"k": 1j}, r"\(complex\)"),
        ({"k": np.array([1j])}, r"at index 1\['k'\]\[0\] is 1j"),
        ({"k": np.array([b"a"])}, r"at index 1\['k'\]\[0\] is b'a'"),
        ({"k": 10**5000}, r"at index 1\['k'\] is an integer of 16,610 bits"),
        ({"k": CYCLE}, "the metadata of the document at index 1 is nested too deep, or holds itself"),
    ],
)
def test_metadata_that_cannot_be_saved_is_refused_with_its_place(store, metadata, message):
    for call in (
        lambda: store.add_documents([Document("fine"), Document("b", metadata=metadata)]),
        lambda: store.add_texts(["fine", "b"], [{}, metadata]),
        lambda: store.add_embeddings([("fine", UNIT), ("b", UNIT)], [{}, metadata]),
        lambda: asyncio.run(store.aadd_texts(["fine", "b"], [{}, metadata])),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    assert len(store) == 4
    assert store.index.ntotal == 4
