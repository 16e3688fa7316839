"""Haystack: pipelines, serialisation, async, and the core's vectors."""

from __future__ import annotations

import asyncio
import pickle

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, Secret
from transformers import AutoTokenizer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder
from tests.conftest import as_query, cosines
from tests.test_llama_index import Counting

TEXTS = ["Copy an entire directory tree.", "Return the square root.", "Parse the command line."]
EMBEDDERS = [Qwen3TextEmbedder, Qwen3DocumentEmbedder]


@pytest.fixture
def settings(model_folder):
    return {
        "model": str(model_folder),
        "dtype": "float32",
        "device": ComponentDevice.from_str("cpu"),
        "progress_bar": False,
    }


def test_vectors_are_the_cores(settings, model_folder):
    core = Qwen3Encoder(model_folder, dtype="float32", device="cpu", dimensions=48)
    for given in ({**settings, "dimensions": 48}, {"encoder": core, "progress_bar": False}):
        text, documents = Qwen3TextEmbedder(**given), Qwen3DocumentEmbedder(**given)
        assert text.run("x")["embedding"] == core.encode_queries(["x"])[0].tolist()
        embedded = documents.run([Document(content=content) for content in TEXTS])["documents"]
        assert [document.embedding for document in embedded] == core.encode_documents(TEXTS).tolist()


def test_the_query_gets_its_instruction_and_documents_keep_their_newlines(settings, reference):
    query = Qwen3TextEmbedder(**settings).run("x y")["embedding"]
    assert cosines([query], reference([as_query("x y")])) >= 0.99999
    document = Qwen3DocumentEmbedder(**settings).run([Document(content="a\n b")])["documents"][0]
    assert cosines([document.embedding], reference(["a\n b"])) >= 0.99999


async def test_async_runs_give_the_same(settings):
    text, documents = Qwen3TextEmbedder(**settings), Qwen3DocumentEmbedder(**settings)
    assert await text.run_async("x") == text.run("x")
    given = [Document(content=content) for content in TEXTS]
    assert await documents.run_async(given) == documents.run(given)


async def test_runs_tell_the_tokens_that_they_took(settings):
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])

    def meta(texts):
        tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
        return {"model": settings["model"], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    text, documents = Qwen3TextEmbedder(**settings), Qwen3DocumentEmbedder(**settings)
    assert text.run("x y")["meta"] == meta([as_query("x y")])
    assert documents.run([Document(content=content) for content in TEXTS])["meta"] == meta(TEXTS)
    runs = await asyncio.gather(*(text.run_async(content) for content in TEXTS * 3))
    assert [run["meta"] for run in runs] == [meta([as_query(content)]) for content in TEXTS * 3]
    # As before, a pipeline finds by itself which output to connect.
    pipeline = Pipeline()
    pipeline.add_component("embedder", documents)
    pipeline.add_component("writer", DocumentWriter(InMemoryDocumentStore()))
    pipeline.connect("embedder", "writer")
    results = pipeline.run({"embedder": {"documents": [Document(content="x")]}})
    assert results["embedder"] == {"meta": meta(["x"])}


def test_meta_fields_are_embedded_before_the_content(settings, reference):
    embedder = Qwen3DocumentEmbedder(
        **settings, meta_fields_to_embed=["title", "year", "no"], embedding_separator=" | "
    )
    document = Document(content="body", meta={"title": "Title", "year": 2026, "no": None})
    empty = Document(content=None, meta={"title": "alone"})
    embedded = embedder.run([document, empty])["documents"]
    expected = reference(["Title | 2026 | body", "alone | "])
    assert (cosines([found.embedding for found in embedded], expected) >= 0.99999).all()


def test_documents_are_not_mutated(settings):
    documents = [Document(content="a", meta={"k": "v"}), Document(content="b"), Document(content="a", meta={"k": "v"})]
    before = [document.to_dict() for document in documents]
    embedded = Qwen3DocumentEmbedder(**settings).run(documents)["documents"]
    assert [document.to_dict() for document in documents] == before
    assert [document.id for document in embedded] == [document.id for document in documents]
    assert embedded[0] is not documents[0]
    assert embedded[0].meta == {"k": "v"}
    embedded[0].meta["new"] = 1
    assert documents[0].meta == {"k": "v"}


def test_no_documents(settings):
    meta = {"model": settings["model"], "usage": {"prompt_tokens": 0, "total_tokens": 0}}
    assert Qwen3DocumentEmbedder(**settings).run([]) == {"documents": [], "meta": meta}


def test_wrong_input_names_the_sibling(settings):
    text, documents = Qwen3TextEmbedder(**settings), Qwen3DocumentEmbedder(**settings)
    with pytest.raises(TypeError, match="expects a string, got list; to embed documents, use Qwen3DocumentEmbedder"):
        text.run([Document(content="x")])
    with pytest.raises(
        TypeError, match="expects a list of Documents, got str; to embed a string, use Qwen3TextEmbedder"
    ):
        documents.run("x")
    with pytest.raises(TypeError, match="index 1 must be a Document, got str"):
        documents.run([Document(content="x"), "y"])
    with pytest.raises(TypeError, match="encoder must have encode_queries"):
        Qwen3TextEmbedder(encoder="tiny")
    with pytest.raises(ValueError, match="dimensions must be between 32 and 256"):
        Qwen3TextEmbedder("tiny", dimensions=1)
    with pytest.raises(ValueError, match="model='8B' has no effect beside encoder="):
        Qwen3TextEmbedder("8B", encoder=text.encoder)
    with pytest.raises(TypeError, match="device must be a ComponentDevice, got 'cpu'"):
        Qwen3TextEmbedder("tiny", device="cpu")
    with pytest.raises(TypeError, match="token must be a Secret, got a str") as caught:
        Qwen3TextEmbedder("tiny", token="hf_do_not_show")
    assert "hf_do_not_show" not in str(caught.value)
    with pytest.raises(TypeError, match="meta_fields_to_embed must be a list of names, got 'title'"):
        Qwen3DocumentEmbedder("tiny", meta_fields_to_embed="title")


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_making_one_loads_nothing_and_warm_up_loads(embedder, settings):
    component = embedder(**settings)
    assert component.encoder._held_engine is None
    component.warm_up()
    assert component.encoder._held_engine.is_loaded
    component.close()
    assert component.encoder._held_engine is None


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_to_dict_round_trips_all_settings(embedder, settings):
    own = {"meta_fields_to_embed": ["title"], "embedding_separator": "; "} if embedder is Qwen3DocumentEmbedder else {}
    given = {
        **settings,
        **own,
        "model": "0.6B",
        "dimensions": 48,
        "query_instruction": "legal",
        "document_instruction": "Find the section on warranty",
        "max_tokens": 100,
        # Instead of a device, hence in a test of its own.
        "device_map": None,
        "long_text": "error",
        "quantization": "int8",
        "batch_tokens": 64,
        "revision": "main",
        "cache_folder": "/tmp/cache",
        "local_files_only": True,
        "token": Secret.from_env_var("QWEN3_TEST_TOKEN", strict=False),
    }
    component = embedder(**given)
    data = component.to_dict()
    assert data["type"] == f"qwen3_embed_integrations.haystack.{embedder.__name__}"
    assert set(data["init_parameters"]) == set(given)
    again = embedder.from_dict(data)
    assert again.to_dict() == data
    assert again.encoder.settings == component.encoder.settings


@pytest.mark.parametrize("embedder", EMBEDDERS)
def test_tokens_stay_secret(embedder, monkeypatch):
    secret = Secret.from_token("hf_do_not_show")
    component = embedder("tiny", token=secret)
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        component.to_dict()
    assert b"hf_do_not_show" not in pickle.dumps(component)
    assert "hf_do_not_show" not in repr(component) + repr(component.encoder)
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_show")
    from_environment = embedder("tiny")
    assert from_environment.encoder._source.token == "hf_do_not_show"
    assert "hf_do_not_show" not in str(from_environment.to_dict())
    assert pickle.loads(pickle.dumps(from_environment)).token == from_environment.token


def test_only_our_encoder_can_be_serialised():
    component = Qwen3TextEmbedder(encoder=Counting())
    assert component.run("x") == {"embedding": [1, 0], "meta": {"model": "Counting"}}
    component.warm_up()
    with pytest.raises(ValueError, match="not those of a Counting"):
        component.to_dict()


def make_pipelines(store, **settings):
    indexing = Pipeline()
    indexing.add_component("embedder", Qwen3DocumentEmbedder(**settings))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder", "writer")
    search = Pipeline()
    search.add_component("embedder", Qwen3TextEmbedder(**settings))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=3))
    search.connect("embedder.embedding", "retriever.query_embedding")
    return indexing, search


def test_pipelines_index_and_search():
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing, search = make_pipelines(store, model="tiny", dtype="float32", progress_bar=False)
    indexing.run({"embedder": {"documents": [Document(content=text) for text in TEXTS]}})
    question = "how do I copy a folder?"
    encoder = Qwen3Encoder("tiny", dtype="float32")
    scores = encoder.encode_documents(TEXTS) @ encoder.encode_queries([question])[0]
    found = search.run({"embedder": {"text": question}})["retriever"]["documents"]
    assert [document.content for document in found] == [TEXTS[n] for n in np.argsort(-scores)]


def test_a_pipeline_through_yaml_gives_the_same_vectors(settings):
    pipeline = Pipeline()
    pipeline.add_component("text", Qwen3TextEmbedder(**settings, dimensions=40))
    pipeline.add_component("documents", Qwen3DocumentEmbedder(**settings, dimensions=40))
    data = {"text": {"text": "x"}, "documents": {"documents": [Document(content=text) for text in TEXTS]}}
    loaded = Pipeline.loads(pipeline.dumps())
    assert loaded.dumps() == pipeline.dumps()
    assert loaded.run(data) == pipeline.run(data)


def test_pickled_components_give_the_same_vectors(settings):
    component = Qwen3TextEmbedder(**settings, dimensions=40)
    assert pickle.loads(pickle.dumps(component)).run("x") == component.run("x")


async def test_many_runs_at_once(settings):
    component = Qwen3TextEmbedder(**settings)
    results = await asyncio.gather(*(component.run_async(text) for text in TEXTS * 5))
    for text, result in zip(TEXTS * 5, results, strict=True):
        np.testing.assert_allclose(result["embedding"], component.run(text)["embedding"], atol=1e-5)
