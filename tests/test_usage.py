"""What an encoder counts, against transformers' own tokenizer, from many callers at once."""

from __future__ import annotations

import asyncio
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile

import pytest
import torch
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from transformers import AutoTokenizer

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder, TruncationWarning, Usage, record_usage
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from tests.conftest import as_query
from tests.misbehaving_server import Model, serving

TEXTS = ["Copy a directory tree.", "def f(x):\n    return x\n", "  \n", "", "你好, 世界", "x" * 300]


@pytest.fixture
def encoder(model_folder):
    return Qwen3Encoder(model_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def ids(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    return lambda text: tokenizer(text)["input_ids"]


@pytest.fixture(scope="module")
def count(ids):
    return lambda texts: sum(len(ids(text)) for text in texts)


def without_time(usage: Usage) -> tuple[int, ...]:
    assert (usage.seconds > 0) == (usage.texts > 0)
    return usage.texts, usage.tokens, usage.truncated_texts, usage.cache_hits, usage.cached_tokens


def test_tokens_are_those_that_the_model_reads(encoder, count):
    assert without_time(encoder.usage) == (0, 0, 0, 0, 0)
    encoder.encode_documents(TEXTS)
    documents = encoder.usage
    assert without_time(documents) == (len(TEXTS), count(TEXTS), 0, 0, 0)
    encoder.encode_queries(TEXTS)
    assert encoder.usage.texts == 2 * len(TEXTS)
    assert encoder.usage.tokens - documents.tokens == count(map(as_query, TEXTS))
    assert encoder.usage.seconds > documents.seconds
    # A snapshot stays what it was.
    assert documents.texts == len(TEXTS)


def test_a_repeated_text_is_a_cache_hit_and_so_is_the_instruction(encoder, ids):
    encoder.encode_documents(["one", "two", "one", "one"])
    one, two = len(ids("one")), len(ids("two"))
    assert without_time(encoder.usage) == (4, 3 * one + two, 0, 2, 2 * one)
    queries = ["one", "def f(x)", "one"]
    with record_usage() as recorded:
        encoder.encode_queries(queries)
    prompt = ids(as_query(""))[:-1]
    shared = [[*takewhile(int, map(int.__eq__, prompt, ids(as_query(query))))] for query in queries]
    first, code, _ = map(len, shared)
    # The tokenizer joins the prompt's colon with "def", so this query shares a token less.
    assert (first, code) == (len(prompt), len(prompt) - 1)
    assert recorded.usage.cache_hits == 1
    assert recorded.usage.cached_tokens == first + code + len(ids(as_query("one")))


def test_a_model_that_keeps_no_instruction_counts_none(model_folder, tmp_path):
    model = SentenceTransformer(str(model_folder), device="cpu")
    same = Dense(64, 64, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(64))
    SentenceTransformer(modules=[model[0], model[1], same, Normalize()], device="cpu").save(str(tmp_path / "other"))
    padded = Qwen3Encoder(tmp_path / "other", dtype="float32", device="cpu")
    padded.encode_queries(["one", "two"])
    assert padded.usage.cached_tokens == 0


def test_cut_texts_count_what_was_read(model_folder):
    short = Qwen3Encoder(model_folder, dtype="float32", device="cpu", max_tokens=64)
    with pytest.warns(TruncationWarning):
        short.encode_documents(["a", "one two three " * 100, "four five six " * 100])
    assert without_time(short.usage) == (3, 2 + 2 * 64, 2, 0, 0)
    assert short.truncated_texts == 2


def test_windows_count_as_one_text_with_all_their_tokens(model_folder, count):
    text = " ".join(f"Section {number} is about subject {number}." for number in range(60))
    chunked = Qwen3Encoder(model_folder, dtype="float32", device="cpu", max_tokens=100, long_text="chunk")
    spans = chunked.split(text, 100, 10)
    windows = count(text[span.start : span.end] for span in spans)
    chunked.encode_documents(["a", text])
    assert without_time(chunked.usage) == (2, 2 + windows, 0, 0, 0)
    with record_usage() as recorded:
        chunked.encode_long_document(text, 100, 10)
    assert without_time(recorded.usage) == (1, windows, 0, 0, 0)


def test_a_call_that_fails_counts_nothing(model_folder):
    strict = Qwen3Encoder(model_folder, dtype="float32", device="cpu", max_tokens=64, long_text="error")
    with pytest.raises(ValueError, match="more than max_tokens=64"):
        strict.encode_documents(["long " * 100])
    with pytest.raises(TypeError, match="index 1 must be a string"):
        strict.encode_documents(["a", None])
    strict.encode_documents([])
    assert strict.usage == Usage()


def test_encoders_that_share_an_engine_and_copies_count_apart(encoder):
    other = Qwen3Encoder(encoder.settings.model, dtype="float32", device="cpu", dimensions=32)
    encoder.encode_documents(["a"])
    assert other._engine() is encoder._engine()
    other.encode_documents(["a", "b"])
    assert (encoder.usage.texts, other.usage.texts) == (1, 2)
    assert pickle.loads(pickle.dumps(encoder)).usage == encoder.replaced(dimensions=32).usage == Usage()
    encoder.close()
    assert encoder.usage.texts == 1


def test_many_threads_lose_nothing_and_each_sees_its_own(encoder, count):
    def call(seed):
        chosen = random.Random(seed)
        batches = [chosen.choices(TEXTS, k=chosen.randint(1, 4)) for _ in range(5)]
        with record_usage() as recorded:
            for batch in batches:
                encoder.encode_documents(batch)
        texts = [text for batch in batches for text in batch]
        hits = sum(len(batch) - len(set(batch)) for batch in batches)
        assert without_time(recorded.usage)[:4] == (len(texts), count(texts), 0, hits)
        return recorded.usage

    with ThreadPoolExecutor(24) as pool:
        each = [*pool.map(call, range(48))]
    total = sum(each, Usage())
    assert without_time(encoder.usage) == without_time(total)
    assert encoder.usage.seconds == pytest.approx(total.seconds)


async def test_tasks_and_nested_blocks_see_their_own(encoder, count):
    async def call(texts):
        with record_usage() as recorded:
            await encoder.aencode_queries(texts)
            inner = recorded.usage
            await encoder.aencode_documents(texts)
        assert inner.tokens == count(map(as_query, texts))
        assert recorded.usage.tokens == inner.tokens + count(texts)
        return recorded.usage.tokens

    with record_usage() as recorded:
        tokens = await asyncio.gather(*(call(TEXTS[:n]) for n in range(1, len(TEXTS) + 1)))
    assert recorded.usage.tokens == sum(tokens) == encoder.usage.tokens
    await encoder.aencode_queries(["a"])
    assert recorded.usage.tokens == sum(tokens)


def test_token_ids_are_the_models(encoder, ids):
    for text in TEXTS:
        assert encoder.tokenize(text) == ids(text)
    with pytest.raises(TypeError, match="must be a string, got None"):
        encoder.tokenize(None)


def test_llama_index_counts_with_the_models_tokenizer(encoder, count):
    handler = TokenCountingHandler(tokenizer=encoder.tokenize)
    embedding = Qwen3Embedding(encoder=encoder, callback_manager=CallbackManager([handler]))
    embedding.get_text_embedding_batch(TEXTS)
    assert handler.total_embedding_token_count == encoder.usage.tokens == count(TEXTS)


@pytest.fixture(scope="module")
def model(model_folder):
    return Model(model_folder)


def test_a_server_counts_itself(model, model_folder, count):
    with serving(model) as server, RemoteEncoder(server.url, model=model_folder, batch_size=4) as remote:
        remote.encode_queries(TEXTS)
        assert without_time(remote.usage) == (len(TEXTS), count(map(as_query, TEXTS)), 0, 0, 0)
        # What it charges for is what it says, though it reads the prompt a second time.
        server.faults = frozenset({"prompt-twice"})
        with record_usage() as recorded:
            remote.encode_queries(TEXTS)
        assert recorded.usage.tokens == count(as_query(as_query(text)) for text in TEXTS)
        server.script = ["html-200"]
        with record_usage() as recorded, pytest.raises(RuntimeError, match="no embeddings"):
            remote.encode_queries(["a"])
        assert recorded.usage == Usage()


def test_a_server_that_counts_nothing(model, model_folder, count, caplog):
    with serving(model) as server:
        server.faults = frozenset({"no-usage"})
        with RemoteEncoder(server.url, model=model_folder, batch_size=4) as remote:
            remote.encode_queries(TEXTS)
            assert remote.usage.tokens == count(map(as_query, TEXTS))
        assert not caplog.records
        with RemoteEncoder(server.url, model="some-model") as unknown:
            assert unknown.dimensions == 64
            unknown.encode_documents(TEXTS)
            # The text that it was asked for its size with counts, too.
            assert without_time(unknown.usage) == (1 + len(TEXTS), 0, 0, 0, 0)
        assert [record.message for record in caplog.records] == [
            "the server does not say how many tokens it reads, so usage leaves them out: "
            "nothing is known of a model named 'some-model'"
        ]
