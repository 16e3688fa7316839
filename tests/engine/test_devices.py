"""Several replicas of a model, and a model whose parts are placed one by one."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.haystack import Qwen3TextEmbedder
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from tests.conftest import cosines

TEXTS = [f"text number {number} {'word ' * (number % 7)}" for number in range(32)]
TWO = ["cpu", "cpu"]


@pytest.fixture(scope="module")
def expected(model_folder):
    return Qwen3Encoder(model_folder, dtype="float32", device="cpu").encode_documents(TEXTS)


@pytest.fixture
def replicas(model_folder):
    return Qwen3Encoder(model_folder, dtype="float32", device=TWO, batch_tokens=30)


def models(encoder):
    return [engine.load() for engine in encoder._engine()._engines]


def test_two_replicas_give_the_vectors_of_one(replicas, expected, monkeypatch):
    first, second = models(replicas)
    assert first is not second
    # Each waits for the other's first group, so that both must take part.
    meeting, sizes = threading.Barrier(2, timeout=60), {}
    for number, model in enumerate((first, second)):

        def watched(items, number=number, embed=model.embed):
            if number not in sizes:
                sizes[number] = 0
                meeting.wait()
            sizes[number] += len(items)
            return embed(items)

        monkeypatch.setattr(model, "embed", watched)
    vectors = replicas.encode_documents(TEXTS)
    assert (cosines(vectors, expected) >= 0.99999).all()
    assert sum(sizes.values()) == len(TEXTS)


def test_replicas_serve_concurrent_callers(replicas, expected):
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(lambda text: replicas.encode_documents([text])[0], TEXTS))
    assert (cosines(np.stack(vectors), expected) >= 0.99999).all()


def test_an_error_in_a_replica_reaches_the_caller_and_stops_the_rest(replicas, expected, monkeypatch):
    good, bad = replicas._engine()._engines
    computed, asked = [], threading.Event()
    embed = good.load().embed

    def watched(items):
        computed.append(len(items))
        assert asked.wait(60)
        deadline = time.monotonic() + 60
        while bad.waiting:
            assert time.monotonic() < deadline
            time.sleep(0)
        return embed(items)

    def broken(_):
        asked.set()
        raise ZeroDivisionError

    monkeypatch.setattr(good.load(), "embed", watched)
    monkeypatch.setattr(bad.load(), "embed", broken)
    with pytest.raises(ZeroDivisionError):
        replicas.encode_documents(TEXTS)
    # One group while the other failed, and perhaps one before that was known.
    assert sum(computed) < len(TEXTS) / 2
    monkeypatch.undo()
    assert (cosines(replicas.encode_documents(TEXTS), expected) >= 0.99999).all()


def test_the_device_list_goes_through_the_adapters_and_their_serialized_form(model_folder):
    folder = str(model_folder)
    langchain = Qwen3Embeddings(model=folder, device=TWO)
    assert langchain.encoder.device == TWO
    assert Qwen3Embeddings(**json.loads(langchain.model_dump_json())).device == TWO
    haystack = Qwen3TextEmbedder.from_dict(Qwen3TextEmbedder(encoder=langchain.encoder).to_dict())
    assert haystack.encoder.device == TWO
    assert haystack.encoder._engine().settings == langchain.encoder._engine().settings


@pytest.mark.skipif(not hasattr(SentenceTransformer, "_device_map"), reason="sentence-transformers moves it again")
@pytest.mark.parametrize("away", ["embed_tokens", "layers.0", "layers.1", "norm"])
def test_a_model_that_is_split_gives_the_same_vectors(model_folder, expected, away):
    parts = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]
    placed = {part: "disk" if part == away else "cpu" for part in parts}
    split = Qwen3Encoder(model_folder, dtype="float32", device_map=placed)
    assert any(weight.is_meta for weight in split._engine().load()._model.parameters())
    assert (cosines(split.encode_documents(TEXTS), expected) >= 0.99999).all()
    queries = Qwen3Encoder(model_folder, dtype="float32", device="cpu").encode_queries(TEXTS)
    assert (cosines(split.encode_queries(TEXTS), queries) >= 0.99999).all()


def test_a_device_map_is_passed_through(model_folder):
    placed = Qwen3Encoder(model_folder, device_map={"": "nowhere"})
    assert placed.replaced().settings.device_map == {"": "nowhere"}
    with pytest.raises((RuntimeError, ValueError), match="nowhere"):
        placed.encode_documents(["x"])
    with pytest.raises(TypeError, match="device_map must be a string or a dictionary, got int"):
        Qwen3Encoder(model_folder, device_map=0)


@pytest.mark.parametrize("settings", [{"device": "cpu"}, {"quantization": "int8"}])
def test_a_device_map_stands_alone(settings):
    with pytest.raises(ValueError, match="leave device and quantization out"):
        Qwen3Encoder("tiny", device_map="auto", **settings)


def test_no_device_is_an_error():
    with pytest.raises(ValueError, match="at least one device"):
        Qwen3Encoder("tiny", device=[])
