"""The three adapters over a server: the local vectors, settings, serialised forms and keys."""

from __future__ import annotations

import json
import pickle
import shutil
from copy import deepcopy
from socket import socket

import pytest
from haystack import Document, Pipeline
from haystack.utils import ComponentDevice, Secret
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.cache import IngestionCache
from llama_index.core.schema import TextNode
from pydantic import SecretStr, ValidationError

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.endpoint import OTHER
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder
from qwen3_embed_integrations.index_file import FingerprintError
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.langchain_store import Qwen3VectorStore
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from tests.conftest import cosines
from tests.misbehaving_server import Model, serving

TEXTS = ["Copy an entire directory tree.", "def f(x):\n    return x\n", ""]
KEY = "sk-do-not-show-0123456789"
PYDANTIC = [Qwen3Embeddings, Qwen3Embedding]


@pytest.fixture(scope="module")
def server(model_folder):
    with serving(Model(model_folder)) as running:
        running.key = KEY
        yield running


@pytest.fixture
def settings(server, model_folder):
    return {"base_url": server.url, "model": str(model_folder), "dimensions": 40, "document_instruction": "legal"}


@pytest.fixture
def expected(model_folder):
    local = Qwen3Encoder(model_folder, dimensions=40, document_instruction="legal", dtype="float32")
    return local.encode_queries(["x"]), local.encode_documents(TEXTS)


def embedded(adapter):
    """A query and documents, each through the framework's own method."""
    if isinstance(adapter, Qwen3Embeddings):
        return [adapter.embed_query("x")], adapter.embed_documents(TEXTS)
    if isinstance(adapter, Qwen3Embedding):
        return [adapter.get_query_embedding("x")], adapter.get_text_embedding_batch(TEXTS)
    text, documents = adapter
    found = documents.run([Document(content=text) for text in TEXTS])["documents"]
    return [text.run("x")["embedding"]], [document.embedding for document in found]


def assert_equal(adapter, expected):
    for found, wanted in zip(embedded(adapter), expected, strict=True):
        assert cosines(found, wanted).min() >= 0.99999


def haystack_pair(**settings):
    return Qwen3TextEmbedder(**settings), Qwen3DocumentEmbedder(**settings, meta_fields_to_embed=["title"])


def test_an_encoder_or_its_settings(settings, expected, monkeypatch):
    monkeypatch.setenv(OTHER.key_variable, KEY)
    encoder = RemoteEncoder(**settings)
    for given in (settings, {"encoder": encoder}):
        for adapter in (Qwen3Embeddings(**given), Qwen3Embedding(**given), haystack_pair(**given, progress_bar=False)):
            assert_equal(adapter, expected)
    shared = Qwen3Embeddings(encoder=encoder)
    assert shared.encoder is encoder
    assert (shared.base_url, shared.dimensions) == (settings["base_url"], 40)


@pytest.mark.parametrize("adapter", PYDANTIC)
def test_a_key_in_the_frameworks_own_type(adapter, settings, expected, monkeypatch):
    monkeypatch.delenv(OTHER.key_variable, raising=False)
    for key in (KEY, SecretStr(KEY)):
        embeddings = adapter(**settings, api_key=key)
        assert_equal(embeddings, expected)
        shown = [repr(embeddings), str(embeddings.model_dump()), embeddings.model_dump_json()]
        assert not any(KEY in text for text in [*shown, str(pickle.dumps(embeddings))])
    for wrong in ({"device": "cpu"}, {"unknown": 1}):
        with pytest.raises(ValidationError) as caught:
            adapter(**settings, api_key=KEY, **wrong)
        assert KEY not in str(caught.value) + str(caught.value.errors())


@pytest.mark.parametrize("adapter", PYDANTIC)
def test_a_serialised_form_makes_an_equal_one(adapter, settings, expected, monkeypatch):
    encoder = RemoteEncoder(**settings, served_model_name="served", batch_size=2, api_key=KEY)
    monkeypatch.setenv(OTHER.key_variable, KEY)
    for embeddings in (adapter(**settings, api_key=KEY), adapter(encoder=encoder)):
        data = json.loads(embeddings.model_dump_json())
        make = getattr(adapter, "from_dict", lambda form: adapter(**form))
        for again in (make(dict(data)), pickle.loads(pickle.dumps(embeddings)), deepcopy(embeddings)):
            assert again.encoder.settings == embeddings.encoder.settings
            assert json.loads(again.model_dump_json()) == data
            assert_equal(again, expected)


@pytest.mark.parametrize("adapter", PYDANTIC)
def test_an_updated_copy(adapter, settings):
    embeddings = adapter(**settings, api_key=KEY)
    copied = embeddings.model_copy(update={"dimensions": 32})
    assert copied.encoder.encode_queries(["x"]).shape == (1, copied.dimensions) == (1, 32)
    with pytest.raises(ValueError, match="device cannot be updated"):
        embeddings.model_copy(update={"device": "cpu"})


@pytest.mark.parametrize(
    "idle",
    [
        {"device": "cpu"},
        {"device_map": "auto"},
        {"dtype": "float32"},
        {"quantization": "int8"},
        {"long_text": "chunk"},
        {"local_files_only": True},
        {"token": "hf_x"},
    ],
    ids=lambda idle: next(iter(idle)),
)
def test_what_has_no_effect_on_a_server_is_refused(settings, idle):
    name = next(iter(idle))
    for adapter in PYDANTIC:
        with pytest.raises(ValueError, match=f"{name}.* has no effect with base_url="):
            adapter(**settings, **idle)
    own = {"device": ComponentDevice.from_str("cpu")} if name == "device" else idle
    own = {"token": Secret.from_token("hf_x")} if name == "token" else own
    with pytest.raises(ValueError, match=f"{name}.* has no effect with base_url="):
        Qwen3TextEmbedder(**settings, **own)


def test_settings_beside_an_encoder_are_refused(settings):
    encoder = RemoteEncoder(**settings, api_key=KEY)
    for adapter in (*PYDANTIC, Qwen3TextEmbedder):
        with pytest.raises(ValueError, match="base_url='http://other/v1' has no effect beside encoder="):
            adapter(encoder=encoder, base_url="http://other/v1")
        key = Secret.from_token(KEY) if adapter is Qwen3TextEmbedder else KEY
        with pytest.raises(ValueError, match="api_key has no effect beside encoder="):
            adapter(encoder=encoder, api_key=key)
        with pytest.raises(ValueError, match="api_key is the key of a server: give base_url too"):
            adapter(model="tiny", api_key=key)


def test_haystack_round_trips(settings, expected, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.delenv(OTHER.key_variable, raising=False)
    pair = haystack_pair(**settings, api_key=Secret.from_env_var("MY_KEY"), progress_bar=False)
    assert_equal(pair, expected)
    data = [component.to_dict() for component in pair]
    assert KEY not in str(data)
    assert data[0]["init_parameters"]["api_key"] == {"type": "env_var", "env_vars": ["MY_KEY"], "strict": True}
    assert_equal([type(component).from_dict(form) for component, form in zip(pair, data, strict=True)], expected)
    pickled = pickle.dumps(pair)
    assert KEY.encode() not in pickled
    assert_equal(pickle.loads(pickled), expected)
    assert_equal(deepcopy(pair), expected)
    pipeline = Pipeline()
    pipeline.add_component("text", pair[0])
    written = pipeline.dumps()
    assert KEY not in written
    assert Pipeline.loads(written).run({"text": {"text": "x"}}) == pipeline.run({"text": {"text": "x"}})


def test_haystack_keeps_all_settings_of_a_given_encoder(settings, expected, monkeypatch):
    monkeypatch.setenv(OTHER.key_variable, KEY)
    encoder = RemoteEncoder(**settings, served_model_name="served", batch_size=2)
    pair = haystack_pair(encoder=encoder, progress_bar=False)
    again = [type(component).from_dict(component.to_dict()) for component in pair]
    assert [component.encoder.settings for component in again] == [encoder.settings] * 2
    assert_equal(again, expected)
    for component in again:
        component.warm_up()
        component.close()


def test_haystack_keys_stay_secret(settings):
    with pytest.raises(TypeError, match="api_key must be a Secret, got a str") as caught:
        Qwen3TextEmbedder(**settings, api_key=KEY)
    assert KEY not in str(caught.value)
    component = Qwen3TextEmbedder(**settings, api_key=Secret.from_token(KEY))
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        component.to_dict()
    assert KEY.encode() not in pickle.dumps(component)
    assert KEY not in repr(component) + repr(component.encoder)


def test_an_ingestion_pipeline_embeds_through_a_server(settings, expected):
    pipeline = IngestionPipeline(
        transformations=[Qwen3Embedding(**settings, api_key=KEY, embed_batch_size=2)], cache=IngestionCache()
    )
    nodes = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS[:2]])
    assert cosines([node.embedding for node in nodes], expected[1][:2]).min() >= 0.99999


def test_an_ingestion_cache_knows_the_server_and_a_folder_that_was_rewritten(
    server, model_folder, other_folder, tmp_path
):
    folder, cache = tmp_path / "model", IngestionCache()
    shutil.copytree(model_folder, folder)

    def embedded(**settings):
        encoder = settings.pop("encoder", None) or RemoteEncoder(server.url, model=folder, api_key=KEY, **settings)
        before = encoder.usage.texts
        IngestionPipeline(transformations=[Qwen3Embedding(encoder=encoder)], cache=cache).run(
            nodes=[TextNode(text="x")]
        )
        return encoder.usage.texts - before

    assert embedded(served_model_name="a") == 1
    same = {"batch_size": 3, "batch_tokens": 50, "concurrency": 2, "max_retries": 1, "timeout": 20, "max_tokens": 90}
    assert embedded(served_model_name="a", query_instruction="legal", **same) == 0
    assert embedded(served_model_name="b") == 1
    kept = RemoteEncoder(server.url, model=folder, api_key=KEY, served_model_name="b")
    assert embedded(encoder=kept) == 0
    shutil.copytree(other_folder, folder, dirs_exist_ok=True)
    kept.close()
    assert embedded(encoder=kept) == 1
    assert embedded(served_model_name="a") == 1


def test_a_server_that_is_down_keeps_nobody_from_serialising(caplog):
    with socket() as nobody:
        # Bound, so that nobody else listens there.
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        embedding = Qwen3Embedding(encoder=RemoteEncoder(url, model="text-embedding-v4", max_retries=0))
        data = embedding.to_dict()
    assert data["fingerprint"] is None
    assert "text-embedding-v4 is serialised without a fingerprint" in caplog.text
    assert Qwen3Embedding.from_dict(data) == embedding


def test_an_index_made_here_is_searched_through_a_server(settings, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv(OTHER.key_variable, KEY)
    here = Qwen3Embeddings(model=str(model_folder), dimensions=40, document_instruction="legal", dtype="float32")
    Qwen3VectorStore.from_texts([f"text number {number}" for number in range(50)], here).save_local(tmp_path / "store")
    expected = Qwen3VectorStore.load_local(tmp_path / "store", here).similarity_search_with_score("text number 7")
    found = Qwen3VectorStore.load_local(tmp_path / "store", Qwen3Embeddings(**settings)).similarity_search_with_score(
        "text number 7"
    )
    assert [document.page_content for document, _ in found] == [document.page_content for document, _ in expected]
    with pytest.raises(FingerprintError, match="cannot be compared"):
        Qwen3VectorStore.load_local(tmp_path / "store", Qwen3Embeddings(**{**settings, "document_instruction": None}))
