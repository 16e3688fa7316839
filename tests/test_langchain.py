"""LangChain: its standard suites, real vector stores, and the core's vectors."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import ValidationError

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from tests.conftest import as_query, cosines

TEXTS = [
    "Copy an entire directory tree to a new place.",
    "Return the square root of a number.",
    "Parse arguments of the command line.",
]


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return Qwen3Embeddings

    @property
    def embedding_model_params(self):
        return {"model": "tiny"}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return Qwen3Embeddings

    @property
    def embedding_model_params(self):
        return {"model": "tiny", "dimensions": 64}


@pytest.fixture(scope="module")
def embeddings(model_folder):
    return Qwen3Embeddings(model=str(model_folder), dtype="float32", device="cpu", dimensions=48)


def test_vectors_are_the_cores(embeddings, model_folder):
    core = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=48)
    assert embeddings.embed_documents(TEXTS) == core.encode_documents(TEXTS).tolist()
    assert embeddings.embed_query(TEXTS[0]) == core.encode_queries(TEXTS[:1])[0].tolist()
    shared = Qwen3Embeddings(encoder=core)
    assert shared.encoder is core
    assert shared.dimensions == 48
    assert shared.embed_query(TEXTS[0]) == embeddings.embed_query(TEXTS[0])


async def test_async_vectors_are_the_same(embeddings):
    assert await embeddings.aembed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
    assert await embeddings.aembed_query("x") == embeddings.embed_query("x")


def test_newlines_prompt_and_unit_length_which_the_generic_wrapper_loses(model_folder, reference):
    full = Qwen3Embeddings(model=str(model_folder), dtype="float32", device="cpu")
    text = "def f(x):\n    return x"
    assert cosines(full.embed_documents([text]), reference([text])) >= 0.99999
    assert cosines(full.embed_documents([text]), reference([text.replace("\n", " ")])) < 0.999
    assert cosines([full.embed_query(text)], reference([as_query(text)])) >= 0.99999
    assert cosines([full.embed_query(text)], reference([text])) < 0.99
    cut = Qwen3Embeddings(model=str(model_folder), dtype="float32", device="cpu", dimensions=32)
    np.testing.assert_allclose(np.linalg.norm(cut.embed_documents(TEXTS), axis=1), 1, atol=1e-6)


def in_memory(embeddings, _folder):
    return InMemoryVectorStore.from_texts(TEXTS, embeddings, [{"n": n} for n in range(3)])


def chroma(embeddings, folder):
    from langchain_chroma import Chroma

    return Chroma.from_texts(TEXTS, embeddings, [{"n": n} for n in range(3)], persist_directory=str(folder))


def qdrant(embeddings, folder):
    from langchain_qdrant import QdrantVectorStore

    return QdrantVectorStore.from_texts(
        TEXTS, embeddings, [{"n": n} for n in range(3)], path=str(folder), collection_name="texts"
    )


@pytest.mark.parametrize("make", [in_memory, chroma, qdrant])
def test_real_vector_stores_rank_as_the_vectors_do(make, tmp_path):
    tiny = Qwen3Embeddings(model="tiny", dtype="float32", device="cpu", dimensions=128)
    store = make(tiny, tmp_path)
    for question in ("how do I copy a folder?", "square root", "command line arguments"):
        expected = np.argsort(-(np.array(tiny.embed_documents(TEXTS)) @ np.array(tiny.embed_query(question))))
        found = store.similarity_search(question, k=3)
        assert [document.metadata["n"] for document in found] == expected.tolist()
    retrieved = store.as_retriever(search_kwargs={"k": 1}).invoke("how do I copy a folder?")
    assert [document.page_content for document in retrieved] == TEXTS[:1]


async def test_a_store_filled_and_searched_asynchronously():
    store = InMemoryVectorStore(Qwen3Embeddings(model="tiny"))
    await store.aadd_documents([Document(text) for text in TEXTS])
    found = await store.asimilarity_search("how do I copy a folder?", k=1)
    assert found[0].page_content == TEXTS[0]


@pytest.mark.parametrize("change", [{"dimensions": 32}, {"document_instruction": "legal"}, {"model": "other"}])
def test_two_embeddings_over_one_cache_never_get_each_others_vectors(model_folder, other_folder, change):
    from langchain_classic.embeddings import CacheBackedEmbeddings

    change = {"model": str(other_folder)} if "model" in change else change
    documents, queries = InMemoryByteStore(), InMemoryByteStore()
    settings = {"model": str(model_folder), "dtype": "float32", "device": "cpu"}
    pair = [Qwen3Embeddings(**settings), Qwen3Embeddings(**{**settings, **change})]

    def cached(embeddings):
        with warnings.catch_warnings():
            # LangChain warns that SHA-1 keys could be forged.
            warnings.simplefilter("ignore")
            return CacheBackedEmbeddings.from_bytes_store(
                embeddings,
                documents,
                namespace=embeddings.encoder.query_fingerprint,
                query_embedding_cache=queries,
            )

    for _ in range(2):
        for embeddings in pair:
            assert cached(embeddings).embed_documents(TEXTS) == embeddings.embed_documents(TEXTS)
            assert cached(embeddings).embed_query("x") == embeddings.embed_query("x")
    assert len(list(documents.yield_keys())) == 6
    assert len(list(queries.yield_keys())) == 2


def test_unknown_and_conflicting_settings_are_refused(embeddings):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Qwen3Embeddings(model="tiny", truncate_dim=64)
    with pytest.raises(ValidationError, match="dimensions must be between 32 and 256"):
        Qwen3Embeddings(model="tiny", dimensions=5000)
    with pytest.raises(ValidationError, match="dimensions=32 has no effect beside encoder="):
        Qwen3Embeddings(encoder=embeddings.encoder, dimensions=32)
    with pytest.raises((ValidationError, TypeError), match="encoder must have encode_queries"):
        Qwen3Embeddings(encoder="tiny")
    with pytest.raises(ValidationError, match="Field is frozen"):
        embeddings.dimensions = 32
    with pytest.raises(TypeError, match="index 1 must be a string"):
        embeddings.embed_documents(["fine", 3])


def test_the_token_shows_nowhere(model_folder):
    secret = "hf_do_not_show"
    embeddings = Qwen3Embeddings(model=str(model_folder), token=secret)
    assert embeddings.token.get_secret_value() == embeddings.encoder._source.token == secret
    shown = [repr(embeddings), str(embeddings), embeddings.model_dump_json(), repr(embeddings.encoder)]
    assert not any(secret in text for text in shown)
    assert secret.encode() not in pickle.dumps(embeddings)
    for wrong in ({"dimensions": 1}, {"unknown": 1}, {"local_files_only": 3}):
        with pytest.raises(ValidationError) as caught:
            Qwen3Embeddings(model="tiny", token=secret, **wrong)
        assert secret not in str(caught.value) + str(caught.value.errors()) + caught.value.json(include_context=False)


def test_settings_take_what_the_core_takes(model_folder):
    embeddings = Qwen3Embeddings(model=model_folder, dtype=torch.float32, dimensions=np.int64(40))
    assert json.loads(embeddings.model_dump_json())["dimensions"] == 40
    assert (embeddings.model, embeddings.dtype) == (str(model_folder), "float32")
    for wrong in (64.0, "64", True):
        with pytest.raises(TypeError, match="dimensions must be an integer"):
            Qwen3Embeddings(model="tiny", dimensions=wrong)


def test_an_updated_copy_has_an_encoder_of_its_own(embeddings):
    copied = embeddings.model_copy(update={"dimensions": 32, "query_instruction": "legal"})
    assert len(copied.embed_query("x")) == copied.dimensions == 32
    expected = embeddings.encoder.replaced(dimensions=32).encode_queries(["x"], instruction="legal")
    assert copied.embed_query("x") == expected[0].tolist()
    assert len(embeddings.embed_query("x")) == 48
    assert embeddings.model_copy().encoder is embeddings.encoder


def test_pickling_keeps_settings_and_vectors(embeddings):
    again = pickle.loads(pickle.dumps(embeddings))
    assert again.dimensions == 48
    assert again.embed_query("x") == embeddings.embed_query("x")


def test_making_one_loads_nothing(model_folder):
    assert Qwen3Embeddings(model=str(model_folder)).encoder._held_engine is None
