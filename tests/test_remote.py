"""The remote encoder against a server that computes with plain transformers and misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import pickle
import random
import select
import shutil
import socket
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from pydantic import SecretStr

from qwen3_embed_integrations import INSTRUCTIONS, EndpointError, Qwen3Encoder, RemoteEncoder, endpoint, remote
from qwen3_embed_integrations.endpoint import OTHER, PROVIDERS
from qwen3_embed_integrations.models import CONTEXT, TINY_FOLDER
from tests.conftest import as_query, cosines
from tests.misbehaving_server import LASTING, PASSING, Model, serving

TEXTS = ["Copy a directory tree.", "def f(x):\n    return x\n", "  \n", "", "x \ud800 y", "你好, 世界"] * 2
KEY = "sk-do-not-show-0123456789"


@pytest.fixture(scope="module")
def model(model_folder):
    return Model(model_folder)


@pytest.fixture
def server(model):
    with serving(model) as running:
        yield running


@pytest.fixture
def make(server, model_folder):
    made = []

    def make(**settings) -> RemoteEncoder:
        made.append(RemoteEncoder(server.url, **{"model": model_folder, **settings}))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def readable(texts):
    return [text.replace("\ud800", "\ufffd") for text in texts]


def test_vectors_are_those_of_the_local_encoder_and_of_plain_transformers(make, model_folder, reference):
    encoder, local = make(batch_size=5), Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    for found, expected, plain in (
        (encoder.encode_documents(TEXTS), local.encode_documents(TEXTS), readable(TEXTS)),
        (encoder.encode_queries(TEXTS), local.encode_queries(TEXTS), map(as_query, readable(TEXTS))),
    ):
        assert found.dtype == np.float32
        assert found.shape == (len(TEXTS), encoder.dimensions) == (12, 64)
        assert cosines(found, expected).min() >= 0.99999
        assert cosines(found, reference([*plain])).min() >= 0.99999
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("settings", [{"dimensions": 40}, {"dimensions": 40, "send_dimensions": True}])
@pytest.mark.parametrize("fault", ["", "not-normalised", "dimensions-refused", "dimensions-ignored", "cut-only"])
def test_cut_vectors_are_the_local_ones_whatever_the_server_does(make, server, model_folder, settings, fault):
    server.faults = frozenset({fault})
    expected = Qwen3Encoder(model_folder, dimensions=40, dtype="float32").encode_documents(TEXTS)
    encoder = make(**settings)
    for _ in range(2):
        assert cosines(encoder.encode_documents(TEXTS), expected).min() >= 0.99999
    asked = ["dimensions" in request for request in server.requests]
    if "send_dimensions" not in settings:
        assert asked == [False, False]
    elif fault == "dimensions-refused":
        # Once with it, once without it, and never again.
        assert asked == [True, False, False]
    else:
        assert asked == [True, True]


def test_instructions_are_written_here_and_nothing_but_texts_is_sent(make, server, model_folder):
    encoder = make(document_instruction="legal", query_instruction="code_search", served_model_name="served")
    encoder.encode_documents(["a"])
    encoder.encode_queries(["b"])
    encoder.encode_queries(["c"], instruction="Find tests that check:")
    assert server.requests == [
        {"model": "served", "input": [text], "encoding_format": "float"}
        for text in (
            as_query("a", INSTRUCTIONS["legal"]),
            as_query("b", INSTRUCTIONS["code_search"]),
            as_query("c", "Find tests that check:"),
        )
    ]
    with pytest.raises(TypeError, match="the text at index 1 must be a string"):
        encoder.encode_documents(["a", [15, 2]])
    assert len(server.requests) == 3
    make(model="4B").close()
    with pytest.raises(EndpointError):
        make(model="4B").encode_queries(["a"])
    assert server.requests[-1]["model"] == "Qwen/Qwen3-Embedding-4B"


def test_order_is_kept_and_no_more_requests_than_allowed_are_under_way(make, server, reference):
    server.faults = frozenset({"shuffled"})
    texts = [f"text number {number}" for number in range(60)]
    found = make(batch_size=4, concurrency=3).encode_documents(texts)
    assert cosines(found, reference(texts)).min() >= 0.99999
    assert sorted(len(request["input"]) for request in server.requests) == [4] * 15
    assert server.most_at_once <= 3


def test_requests_hold_no_more_tokens_than_allowed(make, server, model):
    texts = ["word " * number for number in (1, 5, 9, 30, 2, 2, 2, 40, 1)]
    encoder = make(batch_tokens=20, concurrency=1)
    expected = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    assert encoder.count_tokens(texts) == expected
    encoder.encode_documents(texts)
    sums = [sum(encoder.count_tokens(request["input"])) for request in server.requests]
    assert sum(sums) == sum(expected)
    assert all(total <= 20 or len(request["input"]) == 1 for total, request in zip(sums, server.requests, strict=True))
    assert len(sums) < len(texts)


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(make, server, reference, fault):
    server.script = [fault, fault]
    encoder = make(timeout=0.5 if fault == "slow" else 60)
    assert cosines(encoder.encode_documents(TEXTS), reference(readable(TEXTS))).min() >= 0.99999
    assert server.done == {fault: 2, "": 1}


def test_a_storm_loses_and_swaps_nothing(make, server, reference):
    texts = [f"text number {number}" for number in range(400)]
    faults = [*["429"] * 30, *["500"] * 12, *["503-html"] * 12, *["reset"] * 8, *["cut-body"] * 8]
    server.script = [*faults, *[""] * 50]
    random.Random(7).shuffle(server.script)
    server.faults = frozenset({"shuffled"})
    found = make(batch_size=4, concurrency=16, max_retries=30).encode_documents(texts)
    similarities = found @ reference(texts).T
    lost = len(texts) - len(found)
    swapped = int((similarities.argmax(axis=1) != np.arange(len(texts))).sum())
    assert (lost, swapped) == (0, 0)
    assert similarities.diagonal().min() >= 0.99999
    # 100 requests, 70 faults: each fault cost one more request.
    assert sum(count for fault, count in server.done.items() if fault) == len(faults) == 70
    assert len(server.requests) == 170


@pytest.mark.parametrize("fault", LASTING)
def test_a_wrong_answer_is_an_error_that_names_the_texts(make, server, fault):
    server.script = ["", fault]
    with pytest.raises(EndpointError) as caught:
        make(batch_size=4, concurrency=1).encode_documents(TEXTS[:8])
    wanted = {
        "short": "3 vectors in the answer for the texts at indexes 4 to 7, 4 texts: none for index 7",
        "long": "5 vectors in the answer for the texts at indexes 4 to 7",
        "nan": "the text at index 7 got a vector with numbers that are not finite",
        "null": "the text at index 7 got a vector with numbers that are not finite",
        "zero": "the text at index 7 got a vector of zeros",
        "narrow": "the texts at indexes 4 to 7 got vectors of 63 components, but .* has 64",
        "ragged": "the text at index 7 got a vector of shape",
        "repeated-index": "for the texts at indexes 4 to 7, 4 texts: none for index 7",
        "html-200": "no embeddings in the answer for the texts at indexes 4 to 7, but <html>.*Bad Gateway",
        "empty-object": "no embeddings in the answer for the texts at indexes 4 to 7",
        "no-json": "no embeddings in the answer for the texts at indexes 4 to 7",
    }
    caught.match(wanted[fault])
    assert server.done[fault] == 1
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), EndpointError)


def test_what_never_passes_ends_with_the_servers_words(make, server):
    server.script = ["503-html"] * 3
    with pytest.raises(EndpointError, match=r"no vectors for the text: status 503: .*Bad Gateway") as caught:
        make(max_retries=2).encode_queries(["a"])
    assert caught.value.status == 503
    assert len(server.requests) == 3


REFUSED = (400, 413, 422, 424, 500)


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_is_narrowed_to_the_texts_that_are_refused(make, server, reference, status):
    texts = [f"text number {number}" for number in range(20)]
    server.refuses = {texts[5]: status, texts[6]: status, texts[19]: status}
    encoder = make(batch_size=16, concurrency=1, max_retries=2)
    with pytest.raises(
        EndpointError, match=rf"the text at index 5: status {status}: .*does not read 'text number 5'"
    ) as caught:
        encoder.encode_documents(texts)
    assert (caught.value.index, caught.value.status) == (5, status)
    found, refused = encoder.encode_documents_each(texts)
    assert list(refused) == [5, 6, 19] == [error.index for error in refused.values()]
    assert "status" in str(refused[19])
    assert "'text number 19'" in str(refused[19])
    assert found.dtype == np.float32
    assert not found[[5, 6, 19]].any()
    kept = [index for index in range(20) if index not in refused]
    assert cosines(found[kept], reference([texts[index] for index in kept])).min() >= 0.99999
    assert encoder.usage.texts == 17


def test_a_lone_text_that_is_refused_is_named(make, server):
    server.refuses = {"b": 400}
    with pytest.raises(EndpointError) as caught:
        make().encode_documents(["b"])
    assert caught.value.index == 0
    found, refused = make().encode_documents_each(["b"])
    assert found.tolist() == [[0.0] * 64]
    assert list(refused) == [0]
    found, refused = make().encode_documents_each([])
    assert (found.shape, refused) == ((0, 64), {})


def test_a_request_that_is_too_large_is_sent_in_halves(make, server, reference):
    server.most_texts = 3
    texts = [f"text number {number}" for number in range(11)]
    encoder = make()
    assert cosines(encoder.encode_documents(texts), reference(texts)).min() >= 0.99999
    assert cosines(encoder.encode_documents_each(texts)[0], reference(texts)).min() >= 0.99999


@pytest.mark.parametrize("fault", ["400", "500", "422"])
def test_a_server_that_refuses_everything_is_not_asked_once_per_text(make, server, fault):
    server.refuses_all = int(fault)
    encoder = make(max_retries=1, concurrency=1)
    for call in (encoder.encode_documents, encoder.encode_documents_each):
        server.requests.clear()
        with pytest.raises(EndpointError, match=f"the texts at indexes 0 to 31: status {fault}") as caught:
            call([f"text number {number}" for number in range(64)])
        assert caught.value.index is None
        # Waits for what the second request had begun meanwhile.
        encoder.close()
        assert len(server.requests) <= 8


@pytest.mark.parametrize("fault", ["401", "404", "429", "gone"])
def test_what_is_not_about_one_text_is_an_error_of_all(make, server, fault):
    texts = [f"text number {number}" for number in range(8)]
    encoder = make(max_retries=0, batch_size=4)
    if fault == "429":
        server.script = ["429"] * 8
    elif fault == "gone":
        server.shutdown()
        server.server_close()
    else:
        server.refuses_all = int(fault)
    with pytest.raises(EndpointError, match="the texts at indexes 0 to 3") as caught:
        encoder.encode_documents_each(texts)
    assert caught.value.index is None


@pytest.mark.parametrize("fault", ["nan", "null", "zero", "no-vector", "words"])
def test_a_text_without_a_usable_vector_is_refused_alone(make, server, reference, fault):
    server.spoils = {"b": fault}
    found, refused = make().encode_documents_each(["a", "b", "c", "d"])
    assert list(refused) == [1]
    assert refused[1].index == 1
    assert cosines(found[[0, 2, 3]], reference(["a", "c", "d"])).min() >= 0.99999
    with pytest.raises(EndpointError, match="the text at index 1") as caught:
        make().encode_documents(["a", "b", "c", "d"])
    assert caught.value.index == 1


def test_refusals_tell_what_would_be_refused_and_ask_nobody(make, server, model_folder, tmp_path):
    texts = ["a", "word " * 50, "", "\ud800", "word " * 60]
    local = Qwen3Encoder(model_folder, long_text="error", max_tokens=12, dtype="float32")
    for encoder in (make(max_tokens=12), local):
        refusals = encoder.refusals(texts)
        assert list(refusals) == [1, 4]
        assert refusals[1] == f"has {encoder.count_tokens(texts)[1]} tokens, more than max_tokens=12"
        with pytest.raises(ValueError, match=f"^the text at index 1 {refusals[1]}"):
            encoder.encode_documents(texts)
        assert encoder.refusals([]) == encoder.refusals(texts[:1]) == {}
        with pytest.raises(TypeError, match="put it in a list"):
            encoder.refusals("a")
    assert local.replaced(long_text="truncate").refusals(texts) == {}
    # The document prompt counts.
    [prompt] = make().count_tokens([as_query("a", INSTRUCTIONS["legal"])])
    settings = {"document_instruction": "legal", "max_tokens": prompt + 3}
    for encoder in (make(**settings), local.replaced(**settings)):
        assert list(encoder.refusals(["a", "1 2 3", "a"])) == [1]
    unknown = make(model="acme/other", cache_folder=tmp_path, max_tokens=12)
    assert unknown.refusals(["a" * 11, "a" * 12])[1].startswith("has 12 bytes and may have more than max_tokens=12")
    assert server.requests == []
    found, refused = make(max_tokens=12).encode_documents_each(texts)
    assert {index: str(error) for index, error in refused.items()} == {
        index: f"the text at index {index} {reason}" for index, reason in make(max_tokens=12).refusals(texts).items()
    }
    assert found.any(axis=1).tolist() == [True, False, True, True, False]


def no_waiting(monkeypatch):
    """What is told at once waits for nothing."""
    monkeypatch.setattr(endpoint, "pause", lambda seconds: pytest.fail(f"waited for {seconds} s"))


def test_a_server_that_is_not_there(monkeypatch):
    no_waiting(monkeypatch)
    with serving(None) as gone:
        url = gone.url
    with pytest.raises(EndpointError, match=r"no vectors for the text: .*refused.*is the server running") as caught:
        RemoteEncoder(url, model="tiny").encode_queries(["a"])
    assert f"{url}/embeddings" in str(caught.value)
    with pytest.raises(EndpointError, match=r"no host of the name 'no-such-host\.invalid' is known here"):
        RemoteEncoder("http://no-such-host.invalid/v1", model="tiny").encode_queries(["a"])


@pytest.fixture
def full():
    """The URL of a server that accepts no connection, and answers no attempt either, as one behind a firewall."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fill(listening, stack)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def fill(listening, stack):
    """Take the places of those who wait for their connection to be accepted."""
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listening.getsockname())
    assert select.select([], [waiting], [], 0) == ([], [], [])


@pytest.mark.skipif(sys.platform != "linux", reason="needs a queue of connections that is ever full")
def test_a_server_that_takes_no_connection_is_told_at_the_first_try(full, monkeypatch):
    no_waiting(monkeypatch)
    for call in (
        lambda encoder: encoder.encode_queries(["a"]),
        lambda encoder: encoder.encode_documents_each(["a", "b"]),
        lambda encoder: encoder.dimensions,
        lambda encoder: asyncio.run(encoder.aencode_documents(["a"])),
    ):
        words = rf"no answer from {full}/embeddings: .*; no connection in 0\.2 s: is the server running"
        with pytest.raises(EndpointError, match=words):
            call(RemoteEncoder(full, model="embed:latest", timeout=0.2))
    # However long the answer may take.
    with pytest.raises(EndpointError, match=r"no connection in 1\.2 s"):
        RemoteEncoder(full, model="tiny", timeout=600).encode_queries(["a"])


def test_a_connection_that_breaks_is_tried_twice_more_before_there_was_an_answer(make, server, monkeypatch):
    waits = []
    monkeypatch.setattr(endpoint, "pause", waits.append)
    server.script = ["reset"] * 9
    with pytest.raises(EndpointError, match=f"no answer from {server.url}/embeddings"):
        make(max_retries=8).encode_documents(["a"])
    assert server.done["reset"] == 3
    assert sum(waits) <= 1.5
    server.script = ["", *["reset"] * 5, ""]
    encoder = make(max_retries=5)
    encoder.encode_documents(["a"])
    assert encoder.encode_documents(["b"]).shape == (1, 64)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a queue of connections that is ever full")
def test_a_server_that_was_there_may_be_too_busy_for_a_connection(make, server, monkeypatch):
    encoder = make(max_retries=2, timeout=0.2)
    encoder.encode_documents(["a"])
    server.script = ["reset"]
    server.socket.close()
    server.shutdown()
    waits = []
    monkeypatch.setattr(endpoint, "pause", waits.append)
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(server.server_address)
        listening.listen(0)
        fill(listening, stack)
        with pytest.raises(EndpointError, match="ConnectTimeout") as caught:
            encoder.encode_documents(["b"])
    assert len(waits) == 2
    assert "is the server running" not in str(caught.value)


def test_one_text_is_the_text_and_of_several_the_position_is_told(make, server):
    server.refuses = {"b": 400}
    for texts, words in ((["b"], "the text: status 400"), (["a", "b"], "the text at index 1: status 400")):
        encoder = make(batch_size=1)
        with pytest.raises(EndpointError, match=f"^no vectors for {words}") as caught:
            encoder.encode_documents(texts)
        assert caught.value.index == len(texts) - 1
        _, refused = encoder.encode_documents_each(texts)
        assert str(refused[len(texts) - 1]).startswith(f"no vectors for {words}")
    server.refuses = {}
    for fault, words in {
        "zero": "^the text got a vector of zeros",
        "nan": "^the text got a vector with numbers that are not finite",
        "short": "^0 vectors in the answer for the text$",
        "long": "^2 vectors in the answer for the text$",
        "html-200": "^no embeddings in the answer for the text, but",
        "narrow": "^the text got vectors of 63 components",
    }.items():
        server.script = ["", fault]
        encoder = make()
        encoder.encode_documents(["a", "b"])
        with pytest.raises(EndpointError, match=words):
            encoder.encode_queries(["a"])
    with pytest.raises(TypeError, match=r"^the text must be a string, got None"):
        make().encode_queries([None])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key with a certificate that nobody has signed but itself."""
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    key, signed = folder / "key.pem", folder / "signed.pem"
    subprocess.run([*command.split(), "-keyout", key, "-out", signed], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_text(key.read_text() + signed.read_text())
    return both


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_certificate_and_a_wrong_scheme_are_told_at_once(model, model_folder, certificate, monkeypatch):
    no_waiting(monkeypatch)

    def embed(url):
        with RemoteEncoder(url, model=model_folder) as encoder:
            return encoder.encode_documents(["a"])

    with serving(model, certificate) as safe:
        with pytest.raises(
            EndpointError, match=r"CERTIFICATE_VERIFY_FAILED.*not trusted here: .*SSL_CERT_FILE"
        ) as caught:
            embed(safe.url)
        assert f"{safe.url}/embeddings" in str(caught.value)
        with pytest.raises(EndpointError, match=f"speaks https there: give base_url='{safe.url}'"):
            embed(safe.url.replace("https", "http"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("signed.pem")))
        assert embed(safe.url).shape == (1, 64)
    with serving(model) as plain, pytest.raises(EndpointError, match=f"no https there: try base_url='{plain.url}'"):
        embed(plain.url.replace("http", "https"))


def test_a_server_that_was_there_may_be_starting_again(make, server, monkeypatch):
    encoder = make(max_retries=2)
    encoder.encode_documents(["a"])
    server.script = ["reset"]
    server.socket.close()
    server.shutdown()
    waits = []
    monkeypatch.setattr(endpoint, "pause", waits.append)
    # Its connection is still open, and broken by the first request; then there is no new one to be had.
    with pytest.raises(EndpointError, match="refused"):
        encoder.encode_documents(["b"])
    assert len(waits) == 2


@pytest.mark.parametrize(
    "error",
    [
        {"error": {"message": "slow down", "code": 429}},
        {"error": {"message": "the model is overloaded", "type": "server_error"}},
        {"object": "error", "message": "not now", "code": 503},
        {"detail": "Service temporarily unavailable"},
        {"error": "Too Many Requests"},
    ],
)
def test_an_error_within_status_200_that_passes_is_tried_again(make, server, reference, error):
    server.within = [error]
    assert cosines(make().encode_documents(TEXTS), reference(readable(TEXTS))).min() >= 0.99999
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"error": {"message": "no such thing", "code": "invalid"}}, 400),
        ({"object": "error", "message": "no such thing", "code": 400}, 400),
        ({"detail": [{"msg": "no such thing"}]}, 400),
        ({"error": {"message": "no such thing", "code": "404"}, "data": []}, 404),
        ({"code": 20012, "message": "no such thing", "data": None}, 400),
    ],
)
def test_an_error_within_status_200_is_told_in_the_servers_words(make, server, monkeypatch, error, status):
    no_waiting(monkeypatch)
    server.within = [error] * 9
    words = "the texts at indexes 0 to 11: status 200 with an error inside: .*no such thing"
    with pytest.raises(EndpointError, match=words) as caught:
        make().encode_documents(TEXTS)
    assert caught.value.status == status


@pytest.mark.parametrize("fault", ["no-index", "zero-index", "strings", "base64", "gzip", "format-refused", "no-usage"])
def test_other_forms_of_a_right_answer_are_understood(make, server, reference, fault):
    server.faults = frozenset({fault})
    encoder = make(batch_size=5, concurrency=1)
    assert cosines(encoder.encode_documents(TEXTS), reference(readable(TEXTS))).min() >= 0.99999
    assert encoder.usage.tokens == sum(encoder.count_tokens(TEXTS))


def test_an_encoding_format_that_is_refused_is_not_sent_again(make, server):
    server.faults = frozenset({"format-refused", "base64"})
    encoder = make(batch_size=5, concurrency=1)
    encoder.encode_documents(TEXTS)
    assert ["encoding_format" in request for request in server.requests] == [True, False, False, False]
    server.requests.clear()
    cut = make(dimensions=40, send_dimensions=True)
    assert cut.encode_documents(["a"]).shape == (1, 40)
    # A text that is refused too is told from that.
    server.refuses = {"b": 400}
    assert list(make().encode_documents_each(["a", "b", "c"])[1]) == [1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("half-index", "12 vectors in the answer for .*: none for index 11"),
        ("one-based", "12 vectors in the answer for .*: none for index 0"),
        ("empty-data", "0 vectors in the answer for the texts at indexes 0 to 11"),
    ],
)
def test_an_order_that_is_not_known_is_an_error(make, server, fault, words):
    server.faults = frozenset({fault})
    with pytest.raises(EndpointError, match=words):
        make().encode_documents(TEXTS)


def test_a_base_url_without_v1_is_told_with_the_one_that_answers(server, model_folder, monkeypatch):
    no_waiting(monkeypatch)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    server.path = "/v1/embeddings"
    root = server.url.removesuffix("/v1")
    for wrong in (root, f"{root}/v1/chat/completions", f"{root}/api"):
        with RemoteEncoder(wrong, model=model_folder) as encoder, pytest.raises(EndpointError) as caught:
            encoder.encode_documents(["a"])
        assert f"{wrong}/embeddings is not there, but {server.url}/embeddings answers" in str(caught.value)
        assert f"give base_url='{server.url}'" in str(caught.value)
    assert "of-another-service" not in str(server.sent_headers)
    server.path = "/elsewhere/embeddings"
    words = f"nothing is at {root}/embeddings: base_url is what comes before"
    with RemoteEncoder(root, model=model_folder) as encoder, pytest.raises(EndpointError, match=words):
        encoder.encode_documents(["a"])


def test_a_wrong_name_a_wrong_key_and_a_redirect_are_told_with_the_remedy(make, server, monkeypatch):
    no_waiting(monkeypatch)
    monkeypatch.delenv(OTHER.key_variable, raising=False)
    server.serves = "served"
    with pytest.raises(EndpointError, match=r"status 404: .*does not exist.*as served_model_name, not '/"):
        make().encode_documents(["a"])
    assert make(served_model_name="served").encode_documents(["a"]).shape == (1, 64)
    server.serves, server.key = None, KEY
    with pytest.raises(EndpointError, match=f"no key was sent: give api_key, or set {OTHER.key_variable}"):
        make().encode_documents(["a"])
    with pytest.raises(EndpointError, match=f"check the key that was given, or set {OTHER.key_variable}"):
        make(api_key="sk-wrong").encode_documents(["a"])
    server.redirects_to = "/elsewhere"
    with pytest.raises(EndpointError, match=r"/embeddings was redirected to http://.*/elsewhere: give"):
        make().encode_documents(["a"])


def test_an_empty_text_that_a_server_refuses_is_named(make, server):
    server.refuses = {"": 400}
    with pytest.raises(EndpointError, match="the text at index 1, which is empty: status 400"):
        make().encode_documents(["a", "", "b"])


def test_too_long_a_text_is_refused_before_anything_is_sent(make, server, tmp_path):
    encoder = make(max_tokens=12, batch_size=1)
    assert (encoder.max_tokens, make().max_tokens) == (12, 8192)
    # More bytes than max_tokens, but not more tokens.
    fits = next(text for text in ("def " * 9, "return " * 9) if encoder.count_tokens([text])[0] <= 12)
    assert len(fits) > 12
    assert encoder.encode_documents([fits]).shape == (1, 64)
    sent = len(server.requests)
    with pytest.raises(ValueError, match=r"the text at index 1 has \d+ tokens, more than max_tokens=12"):
        encoder.encode_documents(["a", "word " * 50])
    with pytest.raises(ValueError, match=r"^the text has \d+ tokens, more than max_tokens=12"):
        encoder.encode_queries(["a"])
    unknown = make(model="acme/other", cache_folder=tmp_path, max_tokens=12)
    assert unknown.encode_documents(["a" * 11]).shape == (1, 64)
    with pytest.raises(ValueError, match=r"index 1 has 12 bytes and may have more .* run `hf download acme/other"):
        unknown.encode_documents(["a", "a" * 12])
    with pytest.raises(FileNotFoundError, match="the tokenizer of acme/other is not on this machine"):
        unknown.count_tokens(["a"])
    with pytest.raises(FileNotFoundError, match="nothing is known of a model named 'text-embedding-v4'"):
        make(model="text-embedding-v4").count_tokens(["a"])
    assert len(server.requests) == sent + 1


def test_a_model_that_is_not_known_here_tells_its_size_itself(make, server):
    encoder = make(model="embed:latest")
    assert encoder.dimensions == 64
    assert len(server.requests) == 1
    assert encoder.encode_documents([]).shape == (0, 64)
    server.script = ["narrow"]
    with pytest.raises(EndpointError, match="got vectors of 63 components, but embed:latest has 64"):
        encoder.encode_documents(["a"])
    with pytest.raises(EndpointError, match="64 components, fewer than dimensions=65; send_dimensions=True asks"):
        make(model="embed:latest", dimensions=65).encode_documents(["a"])


def test_the_fingerprint_is_the_local_one(make, model_folder, other_folder, tmp_path):
    for settings in ({}, {"dimensions": 40}, {"document_instruction": "legal"}, {"query_instruction": "legal"}):
        local = Qwen3Encoder(model_folder, **settings)
        assert make(**settings, max_tokens=100).fingerprint == local.fingerprint
        assert make(**settings).query_fingerprint == local.query_fingerprint
    assert make(model=other_folder).fingerprint != make().fingerprint
    commit = "c54f2e6e80b2d7b7de06f51cec4959f6b3e03418"
    pinned = make(model="0.6B", revision=commit, cache_folder=tmp_path)
    assert pinned.fingerprint == f"Qwen.Qwen3-Embedding-0.6B-{commit[:12]}.d1024.doc-none"
    assert make(model="0.6B", cache_folder=tmp_path).fingerprint == "Qwen.Qwen3-Embedding-0.6B-unpinned.d1024.doc-none"
    branch = make(model="0.6B", revision="refs/pr/1", cache_folder=tmp_path)
    assert branch.fingerprint == "Qwen.Qwen3-Embedding-0.6B-refs_pr_1-unpinned.d1024.doc-none"
    named = make(model="embed:latest", dimensions=64).fingerprint
    assert named.startswith("127.0.0.1_")
    assert named.endswith(".embed_latest-unpinned.d64.doc-none")


def test_a_revision_in_the_hubs_cache_is_the_one_taken(make, model_folder, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--acme--other"
    (root / "snapshots").mkdir(parents=True)
    (root / "snapshots" / commit).symlink_to(model_folder)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    settings = {"model": "acme/other", "cache_folder": str(tmp_path)}
    local = Qwen3Encoder(**settings, local_files_only=True)
    encoder = make(**settings)
    assert encoder.fingerprint == local.fingerprint
    assert commit[:12] in encoder.fingerprint
    assert encoder.count_tokens(["a b c"]) == local.count_tokens(["a b c"])
    with pytest.raises(ValueError, match="dimensions must be between 32 and 64 for acme/other, got 65"):
        make(**settings, dimensions=65)


async def test_async_calls_do_not_wait_for_each_other(make, server, reference):
    encoder = make()
    server.script = ["slow", "slow"]
    waiting = [asyncio.create_task(encoder.aencode_queries([text])) for text in ("a", "b")]
    while server.done["slow"] < 2:
        await asyncio.sleep(0.01)
    found = await asyncio.gather(encoder.aencode_queries(["c"]), encoder.aencode_documents(["d", "e"]))
    expected = reference([as_query("c"), "d", "e"])
    assert cosines(np.concatenate(found), expected).min() >= 0.99999
    assert not any(task.done() for task in waiting)
    server.release.set()
    vectors = [await task for task in waiting]
    assert cosines(np.concatenate(vectors), reference([as_query("a"), as_query("b")])).min() >= 0.99999


async def test_a_cancelled_call_sends_no_further_request(make, server, reference):
    encoder = make(batch_size=1, concurrency=2)
    server.script = ["slow", "slow"]
    task = asyncio.create_task(encoder.aencode_documents([f"text {number}" for number in range(20)]))
    while server.done["slow"] < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    server.release.set()
    # Waits for the threads.
    await asyncio.to_thread(encoder.close)
    assert len(server.requests) == 2
    assert encoder.usage.texts == 0
    assert cosines(await encoder.aencode_documents(["a"]), reference(["a"])) >= 0.99999


async def test_a_cancelled_call_does_not_try_again(make, server):
    encoder = make()
    server.retry_after, server.script = "5", ["503-html"] * 9
    task = asyncio.create_task(encoder.aencode_queries(["a"]))
    while not server.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(encoder.close)
    assert len(server.requests) == 1


def test_what_failed_is_not_asked_again_for_its_other_texts(make, server):
    server.refuses, server.retry_after = {"a": 401, "b": 503}, "5"
    encoder = make(batch_size=1, max_retries=1)
    with pytest.raises(EndpointError, match="status 401"):
        encoder.encode_documents(["a", "b"])
    encoder.close()
    assert [request["input"] for request in server.requests].count(["b"]) <= 1


def test_many_threads_share_one_encoder(make, server, reference):
    encoder, texts = make(concurrency=2), [f"text {number}" for number in range(40)]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda text: encoder.encode_documents([text])[0], texts))
    assert cosines(np.stack(found), reference(texts)).min() >= 0.99999
    assert server.most_at_once <= 2


def _in_worker(encoder, text):
    return encoder.encode_documents([text])


def test_worker_processes_spawned_and_forked(make, reference):
    encoder = make()
    expected = encoder.encode_documents(["a"])
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(_in_worker, (encoder, "a")).tolist() == expected.tolist()


def test_closing_is_no_end(make):
    with make() as encoder:
        expected = encoder.encode_queries(["a"])
    assert encoder.encode_queries(["a"]).tolist() == expected.tolist()


def test_a_copy_with_other_settings_keeps_the_key(make, server):
    server.key = KEY
    other = make(api_key=KEY, dimensions=40).replaced(dimensions=48)
    assert other.encode_queries(["a"]).shape == (1, 48)


def test_the_key_shows_nowhere(make, server, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    monkeypatch.delenv(OTHER.key_variable, raising=False)
    server.key = KEY
    encoder = make(api_key=f" {KEY}\n")
    assert encoder.encode_queries(["a"]).shape == (1, 64)
    server.key = "another"
    with pytest.raises(EndpointError, match=r"status 401: .*bad key in Bearer \*\*\*") as caught:
        encoder.encode_queries(["a"])
    error = caught.value
    assert error.__context__ is error.__cause__ is None
    pickled = pickle.dumps(encoder) + pickle.dumps(error)
    shown = [repr(encoder), str(encoder.settings), str(vars(encoder)), json.dumps(encoder.settings.to_dict())]
    shown += [repr(error), str(vars(error)), "".join(traceback.format_exception(error)), caplog.text, str(pickled)]
    assert not any(KEY in text for text in shown)
    for wrong in (7, "sk-\u2013dash", b"sk-do-not-show"):
        with pytest.raises((TypeError, ValueError), match="api_key") as caught:
            make(api_key=wrong)
        assert "do-not-show" not in str(caught.value)


def test_the_key_is_read_from_the_environment_also_after_unpickling(make, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    monkeypatch.delenv(OTHER.key_variable, raising=False)
    make().encode_queries(["a"])
    assert "of-another-service" not in str(server.sent_headers)
    server.key = KEY
    given = make(api_key=SecretStr(KEY))
    assert given.encode_queries(["a"]).shape == (1, 64)
    with pytest.raises(EndpointError, match="401"):
        pickle.loads(pickle.dumps(given)).encode_queries(["a"])
    monkeypatch.setenv(OTHER.key_variable, KEY)
    again = pickle.loads(pickle.dumps(given))
    assert again.settings == given.settings
    assert again.encode_queries(["a"]).shape == make().encode_queries(["a"]).shape == (1, 64)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.key_variable)
def test_what_a_service_takes_is_known(make, server, monkeypatch, provider):
    monkeypatch.setattr(remote, "PROVIDERS", (replace(provider, hosts=(".127.0.0.1",)),))
    monkeypatch.setenv(provider.key_variable, KEY)
    server.key = KEY
    encoder = make(model="embed:latest", batch_tokens=10**6)
    encoder.encode_documents(["a"] * (provider.batch_size + 1))
    assert sorted(len(request["input"]) for request in server.requests) == [1, provider.batch_size]
    assert encoder.max_tokens == (provider.max_tokens or CONTEXT)
    with pytest.raises(ValueError, match=f"max_tokens must be at most {encoder.max_tokens}"):
        make(model="embed:latest", max_tokens=CONTEXT + 1)


def test_hosts_of_services():
    def size(url):
        return RemoteEncoder(url, model="8B")._provider.batch_size

    assert size("https://dashscope-intl.aliyuncs.com/compatible-mode/v1") == 10
    assert size("https://dashscope.aliyuncs.com/compatible-mode/v1") == 10
    assert size("https://api.siliconflow.cn/v1") == size("https://api.siliconflow.com/v1") == 64
    assert size("https://api.deepinfra.com/v1/openai") == 1024
    assert size("http://localhost:8000/v1") == size("https://mine.pai-eas.aliyuncs.com/v1") == 32


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"base_url": "localhost:8000"}, ValueError, "base_url must look like"),
        ({"base_url": "https://me:secret@host/v1"}, ValueError, "base_url must hold no user, password or query"),
        ({"base_url": "https://host/v1?key=secret"}, ValueError, "base_url must hold no user, password or query"),
        ({"base_url": None}, TypeError, "base_url must be a string"),
        ({"dimensions": 5000}, ValueError, "dimensions must be between 32 and 256 for tiny, got 5000"),
        ({"dimensions": 64.0}, TypeError, "dimensions must be an integer"),
        ({"send_dimensions": True}, ValueError, "send_dimensions=True needs dimensions"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ({"max_retries": -1}, ValueError, "max_retries must be at least 0"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0"),
        ({"query_instruction": "websearch"}, ValueError, "did you mean 'web_search'"),
        ({"max_tokens": 40_000}, ValueError, "max_tokens must be at most 32768"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        RemoteEncoder(**{"base_url": "http://host/v1", "model": "tiny", **settings})
    assert "secret" not in str(caught.value)


def test_a_relative_folder_stays_the_same_one_elsewhere(model_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(model_folder.parent)
    encoder = RemoteEncoder("http://host/v1", model=model_folder.name)
    monkeypatch.chdir(tmp_path)
    assert (
        pickle.loads(pickle.dumps(encoder)).fingerprint == encoder.fingerprint == Qwen3Encoder(model_folder).fingerprint
    )


def test_the_url_may_end_in_the_path():
    assert RemoteEncoder("http://host/v1/embeddings", model="tiny").settings.base_url == "http://host/v1"
    assert RemoteEncoder("http://host/v1/", model="tiny").settings.base_url == "http://host/v1"


def test_tiny_behind_a_server_searches_an_index_made_here():
    documents = ["Copy a directory tree.", "Compute a square root.", "Parse the command line."]
    local = Qwen3Encoder("tiny", dimensions=128, dtype="float32")
    with serving(Model(TINY_FOLDER)) as running, RemoteEncoder(running.url, model="tiny", dimensions=128) as encoder:
        assert encoder.fingerprint == local.fingerprint
        scores = encoder.encode_queries(["how do I copy a folder?"]) @ local.encode_documents(documents).T
        assert scores.argmax() == 0
        assert cosines(encoder.encode_documents(documents), local.encode_documents(documents)).min() >= 0.9999
