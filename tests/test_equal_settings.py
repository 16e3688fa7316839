"""Encoders and adapters of equal settings are equal, and those of different ones are not."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.utils import ComponentDevice, Secret
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.storage.kvstore import SimpleKVStore

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3DocumentSplitter, Qwen3TextEmbedder
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.llama_index import Qwen3Embedding, Qwen3NodeParser

PYDANTIC = [Qwen3Embeddings, Qwen3Embedding]
HAYSTACK = [Qwen3TextEmbedder, Qwen3DocumentEmbedder]
URL = "http://host/v1"
ALL = {
    "model": "tiny",
    "dimensions": 64,
    "query_instruction": "legal",
    "document_instruction": "Find it",
    "max_tokens": 100,
    "long_text": "error",
    "dtype": "float32",
    "quantization": "int8",
    "batch_tokens": 64,
    "cache_folder": "/tmp/cache",
    "local_files_only": True,
}


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    for name in ("HF_TOKEN", "HF_API_TOKEN", "QWEN3_EMBED_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def assert_equal(left, right):
    assert left is not right
    assert left == right
    assert (left != right) is False


@pytest.mark.parametrize("kind", [*PYDANTIC, *HAYSTACK, Qwen3Encoder])
def test_equal_settings_make_equal_ones(kind):
    assert_equal(kind(), kind())
    assert_equal(kind(**ALL), kind(**ALL))
    assert_equal(kind(**{**ALL, "dimensions": np.int64(64)}), kind(**ALL))
    for name in ALL:
        assert kind(**{key: value for key, value in ALL.items() if key != name}) != kind(**ALL), name
    assert kind(**ALL) not in (None, "tiny", ALL)


@pytest.mark.parametrize("kind", [*PYDANTIC, *HAYSTACK])
def test_of_a_server(kind):
    settings = {"base_url": URL, "model": "0.6B", "dimensions": 64}
    assert_equal(kind(**settings), kind(**settings))
    for change in ({"base_url": URL + "2"}, {"model": "4B"}, {"dimensions": 32}, {"query_instruction": "legal"}):
        assert kind(**settings) != kind(**{**settings, **change}), change
    keys = [Secret.from_token(key) if kind in HAYSTACK else key for key in ("a", "a", "b")]
    first, second, third = (kind(**settings, api_key=key) for key in keys)
    assert_equal(first, second)
    assert first != third
    assert first != kind(**settings)
    assert kind(model="0.6B", dimensions=64) != kind(**settings)


@pytest.mark.parametrize("kind", [*PYDANTIC, *HAYSTACK])
def test_with_an_encoder_in_place_of_settings(kind):
    encoder = Qwen3Encoder("tiny", dimensions=64)
    assert_equal(kind(encoder=encoder), kind(encoder=encoder))
    assert_equal(kind(encoder=encoder), kind(encoder=Qwen3Encoder("tiny", dimensions=64)))
    assert_equal(kind(encoder=encoder), kind(model="tiny", dimensions=64))
    assert kind(encoder=encoder) != kind(encoder=Qwen3Encoder("tiny", dimensions=32))
    assert kind(encoder=RemoteEncoder(URL, timeout=1)) != kind(encoder=RemoteEncoder(URL))


@pytest.mark.parametrize("kind", [*PYDANTIC, *HAYSTACK, Qwen3Encoder])
def test_what_was_copied_pickled_or_serialised_is_equal(kind):
    for original in (kind(**ALL), kind(model="tiny")):
        for again in (pickle.loads(pickle.dumps(original)), copy(original), deepcopy(original)):
            assert again == original
        if kind is not Qwen3Encoder:
            form = original.model_dump() if kind is Qwen3Embeddings else original.to_dict()
            assert getattr(kind, "from_dict", lambda form: kind(**form))(form) == original


def test_encoders():
    def remote(**settings):
        return RemoteEncoder(**{"base_url": URL, **settings})

    assert_equal(remote(batch_size=3), remote(batch_size=3))
    assert remote(batch_size=3) != remote()
    assert remote(api_key="a") == remote(api_key="a") != remote(api_key="b")
    assert Qwen3Encoder("tiny", token="a") == Qwen3Encoder("tiny", token="a") != Qwen3Encoder("tiny", token="b")
    assert Qwen3Encoder("0.6B") != remote(model="0.6B")
    # Settings that are no plain values, in another order.
    maps = [{"embed_tokens": 0, "norm": 1}, {"norm": 1, "embed_tokens": 0}]
    encoders = [Qwen3Encoder("tiny", device_map=one) for one in maps] + [Qwen3Encoder("tiny", device=["cpu", "cpu"])]
    assert encoders[0] == encoders[1] != encoders[2]
    assert len({*encoders, *encoders, remote(), remote()}) == 3
    # What an encoder did is no setting.
    used = Qwen3Encoder("tiny")
    used.encode_documents(["x"])
    assert used == Qwen3Encoder("tiny")


def test_one_class_is_not_another():
    assert Qwen3Embeddings(model="tiny") != Qwen3Embedding(model="tiny")
    assert Qwen3TextEmbedder("tiny") != Qwen3DocumentEmbedder("tiny")

    class Derived(Qwen3Encoder):
        pass

    assert Derived("tiny") != Qwen3Encoder("tiny")


def test_what_only_an_adapter_has():
    assert Qwen3Embeddings(model="tiny", show_progress=True) != Qwen3Embeddings(model="tiny")
    assert Qwen3Embedding(model="tiny", embed_batch_size=3) != Qwen3Embedding(model="tiny")
    assert Qwen3TextEmbedder("tiny", progress_bar=False) != Qwen3TextEmbedder("tiny")
    assert Qwen3DocumentEmbedder("tiny", embedding_separator=" ") != Qwen3DocumentEmbedder("tiny")
    assert Qwen3DocumentEmbedder("tiny", meta_fields_to_embed=["a"]) != Qwen3DocumentEmbedder("tiny")
    assert_equal(*(Qwen3TextEmbedder("tiny", device=ComponentDevice.from_str("cpu")) for _ in range(2)))
    tokens = [Secret.from_env_var("A", strict=False), Secret.from_env_var("B", strict=False)]
    assert Qwen3TextEmbedder("tiny", token=tokens[0]) != Qwen3TextEmbedder("tiny", token=tokens[1])


def test_managers_and_caches_of_llama_index():
    manager, store = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)]), SimpleKVStore()
    for shared in ({"callback_manager": manager}, {"embeddings_cache": store}):
        assert_equal(Qwen3Embedding(model="tiny", **shared), Qwen3Embedding(model="tiny", **shared))
        assert Qwen3Embedding(model="tiny", **shared) != Qwen3Embedding(model="tiny")
    assert Qwen3Embedding(model="tiny", embeddings_cache=store) != Qwen3Embedding(
        model="tiny", embeddings_cache=SimpleKVStore()
    )


def test_an_unpickled_component_has_its_token_again(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    component = Qwen3TextEmbedder("tiny")
    again = pickle.loads(pickle.dumps(component))
    assert again == component
    assert again.encoder._source.token == "hf_x"


def test_two_equal_components_in_one_pipeline_keep_their_names():
    pipeline = Pipeline()
    settings = {"model": "tiny", "progress_bar": False}
    one, two = Qwen3DocumentEmbedder(**settings), Qwen3DocumentEmbedder(**settings)
    assert one == two
    pipeline.add_component("one", one)
    pipeline.add_component("two", two)
    pipeline.connect("one.documents", "two.documents")
    assert [pipeline.get_component_name(component) for component in (one, two)] == ["one", "two"]
    assert "\ntwo\n" in repr(two)
    assert pipeline.run({"one": {"documents": [Document(content="x")]}})["two"]["documents"]
    assert Pipeline.loads(pipeline.dumps()) == pipeline
    assert len({one, two}) == 2


def test_splitters():
    for kind, size in ((Qwen3NodeParser, "chunk_size"), (Qwen3DocumentSplitter, "split_length")):
        sizes = {size: 64, size.replace("size", "overlap").replace("length", "overlap"): 8}
        assert_equal(kind(model="tiny", **sizes), kind(model="tiny", **sizes))
        assert kind(model="tiny", **sizes) != kind(model="tiny", **{**sizes, size: 65})
