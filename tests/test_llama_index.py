"""LlamaIndex: indexes, pipelines, callbacks, caches, and the core's vectors."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.node_parser import SemanticSplitterNodeParser, SentenceSplitter
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.encoder import BaseEncoder
from qwen3_embed_integrations.engine.source import FilesChangedError
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from tests.conftest import as_query, cosines

TEXTS = ["Copy an entire directory tree.", "Return the square root.", "Parse the command line."]


@pytest.fixture
def settings(model_folder):
    return {"model": str(model_folder), "dtype": "float32", "device": "cpu"}


@pytest.fixture
def embedding(settings):
    return Qwen3Embedding(**settings, dimensions=48)


def test_vectors_are_the_cores(embedding, settings):
    core = Qwen3Encoder(**settings, dimensions=48)
    expected = core.encode_documents(TEXTS).tolist()
    assert embedding.get_text_embedding_batch(TEXTS) == expected
    np.testing.assert_allclose(embedding.get_text_embedding(TEXTS[1]), expected[1], atol=1e-6)
    assert embedding.get_query_embedding("x") == core.encode_queries(["x"])[0].tolist()
    shared = Qwen3Embedding(encoder=core)
    assert shared.encoder is core
    assert (shared.dimensions, shared.model_name) == (48, settings["model"])
    assert shared.get_query_embedding("x") == embedding.get_query_embedding("x")


async def test_async_vectors_are_the_same(embedding):
    assert await embedding.aget_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)
    assert await embedding.aget_text_embedding(TEXTS[0]) == embedding.get_text_embedding(TEXTS[0])
    assert await embedding.aget_query_embedding("x") == embedding.get_query_embedding("x")


def test_the_query_gets_its_instruction_which_the_generic_wrapper_drops(settings, reference):
    embedding = Qwen3Embedding(**settings)
    assert cosines([embedding.get_query_embedding("x y")], reference([as_query("x y")])) >= 0.99999
    assert cosines([embedding.get_text_embedding("x\ny")], reference(["x\ny"])) >= 0.99999
    mean = embedding.get_agg_embedding_from_queries(["a", "b"])
    np.testing.assert_allclose(mean, reference([as_query("a"), as_query("b")]).mean(axis=0), atol=1e-5)


class Counting(BaseEncoder):
    """An encoder of another kind, that tells how many texts each call brought."""

    dimensions = 2
    max_tokens = 100
    fingerprint = "counting"

    def __init__(self):
        super().__init__("web_search", None)
        self.calls = []

    def count_tokens(self, texts):
        return [len(text) for text in texts]

    def _encode(self, texts, prompt, show_progress):
        self.calls.append(len(texts))
        return np.array([[1, 0] if prompt else [0, 1]] * len(texts), dtype=np.float32)


def test_the_framework_does_not_cut_batches_small():
    encoder = Counting()
    embedding = Qwen3Embedding(encoder=encoder)
    embedding.get_text_embedding_batch([str(n) for n in range(2500)])
    assert encoder.calls == [2048, 452]


def test_any_encoder_will_do_but_only_ours_can_be_rebuilt():
    embedding = Qwen3Embedding(encoder=Counting())
    assert embedding.get_query_embedding("x") == [1, 0]
    assert embedding.get_text_embedding("x") == [0, 1]
    assert embedding.model_name == "Counting"
    data = embedding.to_dict()
    assert data["encoder"] == "counting"
    with pytest.raises((ValidationError, TypeError), match="serialised by its fingerprint has to be passed again"):
        Qwen3Embedding.from_dict(data)
    assert Qwen3Embedding.from_dict(data, encoder=Counting()).get_query_embedding("x") == [1, 0]


def test_to_dict_and_json_round_trips(embedding):
    again = Qwen3Embedding.from_dict(json.loads(json.dumps(embedding.to_dict())))
    assert again.to_dict() == embedding.to_dict()
    assert again.get_query_embedding("x") == embedding.get_query_embedding("x")
    assert Qwen3Embedding.from_json(embedding.to_json()).dimensions == 48
    shared = Qwen3Embedding(encoder=embedding.encoder)
    assert shared.to_dict() == embedding.to_dict()


def test_pickled_copies_give_the_same_vectors(embedding):
    for original in (embedding, Qwen3Embedding(encoder=embedding.encoder)):
        again = pickle.loads(pickle.dumps(original))
        assert again.get_query_embedding("x") == embedding.get_query_embedding("x")
        assert again.to_dict() == original.to_dict()


def test_the_token_shows_nowhere(settings):
    embedding = Qwen3Embedding(**settings, token="hf_do_not_show")
    # Older releases show to_dict() to callbacks.
    payload = getattr(embedding, "to_payload", embedding.to_dict)()
    shown = [repr(embedding), str(embedding.to_dict()), str(payload), embedding.to_json()]
    assert not any("hf_do_not_show" in text for text in shown)
    with pytest.raises(ValidationError) as caught:
        Qwen3Embedding(**settings, token="hf_do_not_show", unknown=1)
    assert "hf_do_not_show" not in str(caught.value) + str(caught.value.errors())
    assert b"hf_do_not_show" not in pickle.dumps(embedding)


def test_model_name_is_taken_for_model(settings):
    folder = settings.pop("model")
    named = Qwen3Embedding(model_name=folder, **settings)
    assert (named.model, named.model_name) == (folder, folder)
    assert Qwen3Embedding(model="tiny").model_name == "tiny"
    with pytest.raises(ValidationError, match=r"model='tiny' and model_name='0\.6B' differ"):
        Qwen3Embedding(model="tiny", model_name="0.6B")


def test_unknown_settings_and_wrong_input_are_refused(embedding):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Qwen3Embedding(model="tiny", max_length=64)
    with pytest.raises(TypeError, match="index 2049 must be a string"):
        embedding.get_text_embedding_batch(["fine"] * 2049 + [3])
    with pytest.raises(TypeError, match="put it in a list"):
        embedding.get_text_embedding_batch("hello")
    with pytest.raises(ValidationError, match="Field is frozen"):
        embedding.model_name = "other"
    with pytest.raises(ValidationError, match="dimensions=99 has no effect beside encoder="):
        Qwen3Embedding(encoder=Counting(), dimensions=99)
    with pytest.raises(ValueError, match="dimensions cannot be updated"):
        Qwen3Embedding(encoder=Counting()).model_copy(update={"dimensions": 99})
    with pytest.raises(ValidationError, match="less than or equal to 2048"):
        Qwen3Embedding(model="tiny", embed_batch_size=4096)


def test_index_retrieves_persists_and_loads(tmp_path):
    embedding = Qwen3Embedding(model="tiny", dtype="float32")
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embedding)
    question = "how do I copy a folder?"
    found = index.as_retriever(similarity_top_k=3).retrieve(question)
    scores = np.array(embedding.get_text_embedding_batch(TEXTS)) @ np.array(embedding.get_query_embedding(question))
    assert [hit.text for hit in found] == [TEXTS[n] for n in np.argsort(-scores)]
    np.testing.assert_allclose([hit.score for hit in found], np.sort(scores)[::-1], atol=1e-6)
    index.storage_context.persist(tmp_path)
    loaded = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=embedding)
    assert loaded.as_retriever(similarity_top_k=1).retrieve(question)[0].text == TEXTS[0]


def test_settings_embed_model(embedding):
    try:
        Settings.embed_model = embedding
        assert Settings.embed_model is embedding
        index = VectorStoreIndex.from_documents([Document(text=TEXTS[0])])
        assert index.as_retriever().retrieve("x")[0].text == TEXTS[0]
    finally:
        Settings._embed_model = None


def test_ingestion_pipeline_splits_and_embeds(embedding):
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(), embedding])
    nodes = pipeline.run(documents=[Document(text=text) for text in TEXTS])
    assert [node.text for node in nodes] == TEXTS
    assert [node.embedding for node in nodes] == embedding.get_text_embedding_batch(TEXTS)


def test_ingestion_pipeline_in_worker_processes(embedding):
    # Without a SentenceSplitter, which a worker process of LlamaIndex can only unpickle with network access.
    nodes = IngestionPipeline(transformations=[embedding], disable_cache=True).run(
        nodes=[TextNode(text=text) for text in TEXTS], num_workers=2
    )
    assert [node.text for node in nodes] == TEXTS
    np.testing.assert_allclose([node.embedding for node in nodes], embedding.get_text_embedding_batch(TEXTS), atol=1e-5)


def test_a_call_is_one_span(embedding):
    spans = []

    class Collect(NullSpanHandler):
        def span_enter(self, id_, **_):
            spans.append(id_.rsplit("-", 5)[0])

    dispatcher = get_dispatcher()
    handlers = dispatcher.span_handlers[:]
    dispatcher.add_span_handler(Collect())
    try:
        embedding.get_query_embedding("x")
        embedding.get_text_embedding_batch(TEXTS)
    finally:
        dispatcher.span_handlers[:] = handlers
    assert sum(span.endswith(".get_query_embedding") for span in spans) == 1
    assert sum(span.endswith(".get_text_embedding_batch") for span in spans) == 1


def test_callbacks_and_events_carry_texts_and_vectors(settings):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embedding = Qwen3Embedding(**settings, callback_manager=CallbackManager([debug]))
    events = []

    class Collect(BaseEventHandler):
        def handle(self, event, **_):
            events.append(event)

    handler = Collect()
    get_dispatcher().add_event_handler(handler)
    try:
        vector = embedding.get_query_embedding("x")
        vectors = embedding.get_text_embedding_batch(TEXTS)
    finally:
        get_dispatcher().event_handlers.remove(handler)
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert [(event.chunks, event.embeddings) for event in ends] == [(["x"], [vector]), (TEXTS, vectors)]
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [pair[1].payload[EventPayload.CHUNKS] for pair in pairs] == [["x"], TEXTS]


@pytest.mark.parametrize("change", ["model", "dimensions", "document_instruction", "query_instruction"])
async def test_two_embeddings_over_one_cache_never_get_each_others_vectors(settings, other_folder, change):
    changes = {"model": str(other_folder), "dimensions": 32}
    store = SimpleKVStore()
    other = {**settings, change: changes.get(change, "legal")}

    def cached(given):
        return Qwen3Embedding(**given, embeddings_cache=store)

    for _ in range(2):
        for given in (settings, other):
            plain = Qwen3Embedding(**given)
            # Which texts run together decides on the last bits, with some versions of torch.
            query = pytest.approx(np.array(plain.get_query_embedding(TEXTS[0])), abs=1e-6)
            texts = pytest.approx(np.array(plain.get_text_embedding_batch(TEXTS)), abs=1e-6)
            # The same text as a query and as a document, which the framework itself would file under one key.
            assert np.array(cached(given).get_query_embedding(TEXTS[0])) == query
            assert np.array(cached(given).get_text_embedding_batch(TEXTS)) == texts
            assert np.array(await cached(given).aget_query_embedding(TEXTS[0])) == query
            assert np.array(await cached(given).aget_text_embedding_batch(TEXTS)) == texts
    documents = 3 if change == "query_instruction" else 6
    assert len(store.get_all("embeddings")) == documents + 2


def test_a_cache_taken_from_another_embedding_or_assigned_later(settings):
    first = Qwen3Embedding(**settings, dimensions=32, embeddings_cache=SimpleKVStore())
    first.get_text_embedding("x")
    second = Qwen3Embedding(**settings, embeddings_cache=first.embeddings_cache)
    assert len(second.get_text_embedding("x")) == 64
    third = Qwen3Embedding(**settings, dimensions=48)
    third.embeddings_cache = first.embeddings_cache
    assert len(third.get_text_embedding("x")) == 48
    store = SimpleKVStore()
    third.embeddings_cache = store
    query, text = third.get_query_embedding("x"), third.get_text_embedding("x")
    assert query != text
    assert len(store.get_all("embeddings")) == 2
    third.embeddings_cache = None
    assert third.get_text_embedding("x") == text


def test_the_cache_is_really_used():
    store, encoder = SimpleKVStore(), Counting()
    embedding = Qwen3Embedding(encoder=encoder, embeddings_cache=store)
    for _ in range(3):
        embedding.get_query_embedding("x")
        embedding.get_text_embedding("x")
    assert encoder.calls == [1, 1]


def ingested(embedding, cache):
    """The vectors that a pipeline gives, and how many texts were embedded for them."""
    before = embedding.encoder.usage.texts
    pipeline = IngestionPipeline(transformations=[embedding], cache=cache)
    nodes = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS])
    return [node.embedding for node in nodes], embedding.encoder.usage.texts - before


@pytest.fixture
def rewritten(model_folder, other_folder, tmp_path):
    """A folder with a model, and a function that writes other weights there."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    return folder, lambda: shutil.copytree(other_folder, folder, dirs_exist_ok=True)


def test_an_ingestion_cache_does_not_outlive_the_weights(rewritten):
    folder, rewrite = rewritten
    cache, settings = IngestionCache(), {"model": str(folder), "dtype": "float32"}
    first = Qwen3Embedding(**settings)
    old, _ = ingested(first, cache)
    assert ingested(Qwen3Embedding(**settings), cache) == (old, 0)
    rewrite()
    second = Qwen3Embedding(**settings)
    new, embedded = ingested(second, cache)
    assert embedded == 3
    assert new == second.encoder.encode_documents(TEXTS).tolist()
    assert cosines(old, new).max() < 0.9
    # The one that was there before is that of the new weights once it is closed.
    first.encoder.close()
    assert ingested(first, cache) == (new, 0)
    assert first.get_text_embedding_batch(TEXTS) == new


async def test_nor_does_it_in_an_async_pipeline_or_inside_of_another_component(rewritten):
    folder, rewrite = rewritten
    cache, embedded = IngestionCache(), []
    for _ in range(3):
        embedding = Qwen3Embedding(model=str(folder), dtype="float32")
        splitter = SemanticSplitterNodeParser(
            embed_model=embedding, sentence_splitter=lambda text: text.splitlines(keepends=True)
        )
        documents = [Document(text="\n".join(TEXTS), doc_id="1")]
        await IngestionPipeline(transformations=[splitter], cache=cache).arun(documents=documents)
        splitting = embedding.encoder.usage.texts
        await IngestionPipeline(transformations=[embedding], cache=cache).arun(nodes=[TextNode(text="x")])
        embedded.append((splitting, embedding.encoder.usage.texts - splitting))
        if len(embedded) == 2:
            rewrite()
    assert embedded == [(3, 1), (0, 0), (3, 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"show_progress": True},
        {"query_instruction": "legal"},
        {"query_instruction": ""},
        {"embed_batch_size": 1},
        {"num_workers": 2},
        {"callback_manager": CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])},
        {"batch_tokens": 16},
        {"device": None},
        {"dtype": "bfloat16"},
        {"cache_folder": "/tmp/elsewhere"},
        {"local_files_only": True},
        {"token": "hf_x"},
        {"embeddings_cache": SimpleKVStore()},
        {"dimensions": 64},
        {"document_instruction": ""},
        {"max_tokens": 8192},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_no_vector_is_found_in_an_ingestion_cache(settings, change):
    cache = IngestionCache()
    vectors, _ = ingested(Qwen3Embedding(**settings), cache)
    assert ingested(Qwen3Embedding(**{**settings, **change}), cache) == (vectors, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 32},
        {"document_instruction": "legal"},
        {"max_tokens": 100},
        {"long_text": "chunk"},
        {"long_text": "error"},
        {"quantization": "int8"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_vector_is_embedded_anew(settings, change):
    cache = IngestionCache()
    ingested(Qwen3Embedding(**settings), cache)
    changed = Qwen3Embedding(**{**settings, **change})
    assert ingested(changed, cache)[1] == 3


def test_a_text_that_is_refused_is_not_found_in_an_ingestion_cache(settings):
    cache, nodes = IngestionCache(), [TextNode(text="x" * 100)]
    with pytest.warns(UserWarning, match="was cut"):
        IngestionPipeline(transformations=[Qwen3Embedding(**settings, max_tokens=8)], cache=cache).run(nodes=nodes)
    refusing = Qwen3Embedding(**settings, max_tokens=8, long_text="error")
    with pytest.raises(ValueError, match="more than max_tokens=8"):
        IngestionPipeline(transformations=[refusing], cache=cache).run(nodes=nodes)


class Marked(Qwen3Embedding):
    """What users derive, with a setting of their own that changes vectors."""

    mark: str = ""

    def _get_text_embeddings(self, texts):
        return super()._get_text_embeddings([self.mark + text for text in texts])


def test_a_derived_class_is_cached_with_its_own_settings(settings):
    cache = IngestionCache()
    ingested(Marked(**settings, mark="a"), cache)
    assert ingested(Marked(**settings, mark="a"), cache)[1] == 0
    assert ingested(Marked(**settings, mark="b"), cache)[1] == 3


def test_a_loader_restores_all_that_was_set(settings):
    embedding = Qwen3Embedding(
        **settings,
        dimensions=48,
        query_instruction="legal",
        document_instruction="Find it",
        max_tokens=100,
        long_text="error",
        batch_tokens=64,
        cache_folder="/tmp/cache",
        local_files_only=True,
        show_progress=True,
        embed_batch_size=7,
        num_workers=2,
    )
    data = embedding.to_dict()
    assert data["fingerprint"] == embedding.encoder.fingerprint
    forms = [
        data,
        dict(data),
        json.loads(json.dumps(data)),
        json.loads(embedding.to_json()),
        pickle.loads(pickle.dumps(data)),
    ]
    for form in forms:
        again = Qwen3Embedding.from_dict(form)
        assert again == embedding
        assert again.encoder.settings == embedding.encoder.settings
        assert again.query_instruction == "legal"
        assert again.get_query_embedding("x") == embedding.get_query_embedding("x")
    assert Qwen3Embedding.from_json(embedding.to_json()) == embedding
    assert Qwen3Embedding.from_dict(data, dimensions=32).dimensions == 32


def test_a_form_that_was_saved_with_other_weights_makes_an_embedding_of_those_that_are_there(rewritten):
    folder, rewrite = rewritten
    saved = Qwen3Embedding(model=str(folder), dtype="float32").to_dict()
    rewrite()
    loaded = Qwen3Embedding.from_dict(saved)
    assert loaded.to_dict()["fingerprint"] == loaded.encoder.fingerprint != saved["fingerprint"]


def test_a_model_that_is_not_here_is_serialised_without_a_fingerprint(tmp_path, rewritten, caplog):
    folder, _ = rewritten
    hub = {"model": "nobody/nothing", "cache_folder": str(tmp_path), "local_files_only": True}
    missing, gone = Qwen3Embedding(**hub), Qwen3Embedding(model=str(folder))
    aside = folder.rename(tmp_path / "aside")
    for embedding in (missing, gone):
        caplog.clear()
        data = json.loads(embedding.to_json())
        assert data["fingerprint"] is None
        [record] = caplog.records
        assert f"{embedding.model} is serialised without a fingerprint" in record.getMessage()
    assert Qwen3Embedding.from_dict(missing.to_dict()) == missing
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        ingested(missing, IngestionCache())
    aside.rename(folder)
    assert gone.to_dict()["fingerprint"] == gone.encoder.fingerprint


def test_files_that_change_under_an_embedding_are_told_by_name(rewritten):
    folder, rewrite = rewritten
    embedding = Qwen3Embedding(model=str(folder), dtype="float32")
    embedding.encoder.encode_documents(["x"])
    rewrite()
    with pytest.raises(FilesChangedError, match="close it or make a new one"):
        ingested(embedding, IngestionCache())
    embedding.encoder.close()
    assert ingested(embedding, IngestionCache())[1] == 3
