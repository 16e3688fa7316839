"""The LangChain vector store: LangChain's own suite, search, and what is saved."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests.vectorstores import VectorStoreIntegrationTests

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.index_file import DamagedIndexError, FingerprintError
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
from qwen3_embed_integrations.matryoshka import two_stage_index

TEXTS = ["Copy a directory tree.", "Compute a square root.", "Parse the command line.", "Read a file line by line."]


class TestStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        embeddings = self.get_embeddings()
        dimensions = len(embeddings.embed_query("a"))
        return Qwen3VectorStore(embeddings, two_stage_index(dimensions, 4))


@pytest.fixture(scope="module")
def embeddings():
    return Qwen3Embeddings(model="tiny", dtype="float32")


@pytest.fixture
def store(embeddings):
    return Qwen3VectorStore.from_texts(
        TEXTS, embeddings, [{"length": len(text), "even": len(text) % 2 == 0} for text in TEXTS], ids=list("abcd")
    )


def test_scores_are_the_cosines_and_best_first(store, embeddings):
    query = np.array(embeddings.embed_query("how do I copy a folder?"))
    expected = sorted(zip(np.array(embeddings.embed_documents(TEXTS)) @ query, TEXTS, strict=True), reverse=True)
    found = store.similarity_search_with_score("how do I copy a folder?", k=4)
    assert [document.page_content for document, _ in found] == [text for _, text in expected]
    np.testing.assert_allclose([score for _, score in found], [cosine for cosine, _ in expected], atol=1e-3)
    assert found[0][0] == Document(id="a", page_content=TEXTS[0], metadata={"length": 22, "even": True})
    relevance = store.similarity_search_with_relevance_scores("how do I copy a folder?", k=1)[0][1]
    assert relevance == pytest.approx(found[0][1])


def test_more_than_there_are(store):
    assert len(store.similarity_search("anything", k=50)) == 4


def test_filters(store):
    assert {found.id for found in store.similarity_search("file", k=4, filter={"even": False})} == {"c", "d"}
    assert [found.id for found in store.similarity_search("file", filter=lambda document: document.id == "b")] == ["b"]
    assert store.similarity_search("file", filter={"nothing": None}) == []


def test_deleted_and_replaced_documents_are_never_found(embeddings):
    texts = [f"The number {number}." for number in range(60)]
    store = Qwen3VectorStore.from_texts(texts, embeddings, ids=[str(number) for number in range(60)])
    store.delete([str(number) for number in range(55)])
    assert {found.id for found in store.similarity_search("The number 3.", k=5)} == {"55", "56", "57", "58", "59"}
    assert store.index.ntotal == 5  # Built anew, since more were deleted than left.
    store.add_texts(["A square root."], ids=["55"])
    found = store.similarity_search("The number 3.", k=10)
    assert len(found) == 5
    assert {document.page_content for document in found if document.id == "55"} == {"A square root."}
    store.delete()
    assert store.similarity_search("The number 3.") == []
    assert store.index.ntotal == 0


def test_what_is_found_can_be_changed_without_harm(store):
    store.similarity_search("file", k=4)[0].metadata["length"] = 0
    assert all(document.metadata["length"] == len(document.page_content) for document in store.get_by_ids(list("abcd")))


def test_an_id_given_twice_keeps_the_last(embeddings):
    store = Qwen3VectorStore(embeddings)
    assert store.add_texts(["first", "second"], ids=["a", "a"]) == ["a", "a"]
    assert [found.page_content for found in store.similarity_search("first", k=5)] == ["second"]


def test_marginal_relevance_prefers_what_is_new(embeddings):
    store = Qwen3VectorStore.from_texts([TEXTS[0], TEXTS[0], TEXTS[0], TEXTS[1]], embeddings)
    plain = [found.page_content for found in store.similarity_search("copy a directory", k=2)]
    diverse = [found.page_content for found in store.max_marginal_relevance_search("copy a directory", k=2)]
    assert plain == [TEXTS[0], TEXTS[0]]
    assert diverse == [TEXTS[0], TEXTS[1]]
    retriever = store.as_retriever(search_type="mmr", search_kwargs={"k": 2})
    assert [found.page_content for found in retriever.invoke("copy a directory")] == diverse


def test_the_retriever_and_its_threshold(store):
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.99, "k": 4}
    )
    assert retriever.invoke("how do I copy a folder?") == []


def test_another_index_of_inner_products(embeddings):
    store = Qwen3VectorStore.from_texts(TEXTS, embeddings, index=faiss.IndexFlatIP(256))
    assert store.similarity_search("how do I copy a folder?", k=1)[0].page_content == TEXTS[0]


def test_wrong_indexes_and_arguments(embeddings, store):
    with pytest.raises(ValueError, match="inner products"):
        Qwen3VectorStore(embeddings, faiss.IndexFlatL2(256))
    with pytest.raises(ValueError, match="gives no vector back"):
        Qwen3VectorStore(embeddings, faiss.IndexIDMap(faiss.IndexFlatIP(256)))
    with pytest.raises(ValueError, match="must be empty, but has 4 vectors"):
        Qwen3VectorStore(embeddings, store.index)
    with pytest.raises(TypeError, match="must be one of this package"):
        Qwen3VectorStore(DeterministicFakeEmbedding(size=6))
    with pytest.raises(ValueError, match="index 0 has 6 dimensions, and the index 256"):
        Qwen3VectorStore(DeterministicFakeEmbedding(size=6), two_stage_index(256)).add_texts(["a"])
    with pytest.raises(ValueError, match="got 1 for 2 documents"):
        store.add_documents([Document("a"), Document("b")], ids=["a"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        store.similarity_search("a", k=0)
    with pytest.raises(TypeError, match="takes no nonsense"):
        store.similarity_search("a", nonsense=1)
    assert store.index.ntotal == 4


def test_saved_and_loaded(store, embeddings, tmp_path):
    store.add_texts(["lone \ud800, \0 and\u2028line"], ids=["e"])
    store.delete(["c"])
    store.save_local(tmp_path / "new" / "store")
    loaded = Qwen3VectorStore.load_local(tmp_path / "new" / "store", embeddings)
    for query in ("how do I copy a folder?", "lone"):
        assert loaded.similarity_search_with_score(query, k=5) == store.similarity_search_with_score(query, k=5)
    loaded.add_texts(["Compress data."], ids=["f"])
    loaded.save_local(tmp_path / "new" / "store")
    assert len(list((tmp_path / "new" / "store").iterdir())) == 3
    again = Qwen3VectorStore.load_local(tmp_path / "new" / "store", embeddings)
    assert again.get_by_ids(list("abcdef")) == loaded.get_by_ids(list("abcdef"))
    assert len(again.get_by_ids(list("abcdef"))) == 5


def test_threads_that_save_at_once_leave_a_whole_store(store, embeddings, tmp_path):
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            list(threads.map(lambda _: store.save_local(tmp_path), range(8)))
            assert Qwen3VectorStore.load_local(tmp_path, embeddings).get_by_ids(list("abcd")) == store.get_by_ids(
                list("abcd")
            )


def test_another_encoder_is_refused_by_name(store, embeddings, tmp_path):
    store.save_local(tmp_path)
    other = Qwen3Embeddings(model="tiny", dimensions=64)
    with pytest.raises(FingerprintError) as caught:
        Qwen3VectorStore.load_local(tmp_path, other)
    assert embeddings.encoder.fingerprint in str(caught.value)
    assert other.encoder.fingerprint in str(caught.value)
    with pytest.raises(FingerprintError):
        Qwen3VectorStore.load_local(tmp_path, Qwen3Embeddings(model="tiny", document_instruction="web_search"))
    Qwen3VectorStore.load_local(tmp_path, Qwen3Embeddings(model="tiny", query_instruction="code_search"))
    with pytest.raises(TypeError, match="must be one of this package"):
        Qwen3VectorStore.load_local(tmp_path, DeterministicFakeEmbedding(size=256))


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_damaged_documents(store, embeddings, tmp_path, damage):
    store.save_local(tmp_path)
    path = next(tmp_path.glob("documents-*"))
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-20])
    elif damage == "changed":
        path.write_bytes(content[:40] + bytes([content[40] ^ 255]) + content[41:])
    else:
        path.unlink()
    with pytest.raises(DamagedIndexError, match="damaged or missing"):
        Qwen3VectorStore.load_local(tmp_path, embeddings)


def test_an_index_without_documents(tmp_path, embeddings):
    from qwen3_embed_integrations.index_file import save_index

    save_index(two_stage_index(256), tmp_path / "index.faiss", Qwen3Encoder("tiny"))
    with pytest.raises(DamagedIndexError, match="an index without documents"):
        Qwen3VectorStore.load_local(tmp_path, embeddings)


def test_threads_that_add_and_search(embeddings):
    store = Qwen3VectorStore(embeddings)
    texts = [f"The number {number}." for number in range(120)]
    failures = []

    def add(part):
        try:
            for text in part:
                store.add_texts([text], ids=[text])
                assert text in {found.id for found in store.similarity_search(text, k=5)}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=add, args=(texts[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert {found.id for found in store.similarity_search("The number 1.", k=200)} == set(texts)
