"""Several replicas of a model, and a model whose parts are placed one by one."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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
    computed = []
    first, second = models(replicas)
    monkeypatch.setattr(first, "embed", lambda _: 1 / 0)
    monkeypatch.setattr(second, "embed", lambda _: computed.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replicas.encode_documents(TEXTS)
    assert len(computed) <= 1
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


def test_a_device_map_is_passed_through(model_folder, expected):
    placed = Qwen3Encoder(model_folder, dtype="float32", device_map={"": "cpu"})
    assert (cosines(placed.encode_documents(TEXTS), expected) >= 0.99999).all()
    assert placed.replaced().settings.device_map == {"": "cpu"}


@pytest.mark.parametrize("settings", [{"device": "cpu"}, {"quantization": "int8"}])
def test_a_device_map_stands_alone(settings):
    with pytest.raises(ValueError, match="leave device and quantization out"):
        Qwen3Encoder("tiny", device_map="auto", **settings)


def test_no_device_is_an_error():
    with pytest.raises(ValueError, match="at least one device"):
        Qwen3Encoder("tiny", device=[])
