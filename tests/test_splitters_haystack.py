"""Haystack's splitter: exact places and sizes, Haystack's own meta, pipelines and YAML."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import pytest
from haystack import Document, Pipeline
from haystack.components.converters import TextFileToDocument
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3DocumentSplitter, Qwen3TextEmbedder
from tests.long_texts import (
    ANSWER,
    BLANKS,
    HANDBOOK,
    QUESTION,
    REAL,
    REPEATING,
    SPARSE,
    TEXTS,
    check_places,
    check_visible,
    count_tokens,
)

SIZES = {"split_length": 64, "split_overlap": 16}
PAGES = "\f".join(f"This is page {number}. " * number for number in range(1, 30)) + "\f\f"


@pytest.fixture
def splitter():
    return Qwen3DocumentSplitter("tiny", **SIZES)


def places(pieces):
    starts = [piece.meta["split_idx_start"] for piece in pieces]
    return [(start, start + len(piece.content)) for start, piece in zip(starts, pieces, strict=True)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_pieces_are_the_windows_of_the_core(splitter, text):
    pieces = splitter.run([Document(content=text)])["documents"]
    assert places(pieces) == [(span.start, span.end) for span in Qwen3Encoder("tiny").split(text, 64, 16)]
    assert [piece.content for piece in pieces] == [text[start:end] for start, end in places(pieces)]
    check_places(text, places(pieces), 64, 16)


@pytest.mark.parametrize("text", [*TEXTS.values(), PAGES, *SPARSE.values()], ids=[*TEXTS, "pages", *SPARSE])
def test_meta_are_those_of_the_generic_splitter(splitter, text):
    if "\f" in text:
        # Older releases count the page breaks that a piece begins with to the page before.
        pytest.importorskip("haystack.components.preprocessors._page_numbers")
    document = Document(content=text, meta={"name": "given", "page_number": 99})
    ours = splitter.run([document])["documents"]
    generic = DocumentSplitter(split_by="word", split_length=30, split_overlap=5)
    assert [*ours[0].meta] == [*generic.run([document])["documents"][0].meta]
    # What the generic splitter writes for the same pieces.
    theirs = generic._create_docs_from_splits(
        text_splits=[piece.content for piece in ours],
        splits_pages=[1 + text[:start].count("\f") for start, _ in places(ours)],
        splits_start_idxs=[start for start, _ in places(ours)],
        meta={**document.meta, "source_id": document.id},
    )
    assert [piece.to_dict() for piece in ours] == [piece.to_dict() for piece in theirs]


def test_overlaps_point_at_what_is_shared(splitter):
    pieces = splitter.run([Document(content=REPEATING)])["documents"]
    assert [len(piece.meta["_split_overlap"]) for piece in pieces] == [1, *[2] * (len(pieces) - 2), 1]
    for before, piece in pairwise(pieces):
        there, here = piece.meta["_split_overlap"][0], before.meta["_split_overlap"][-1]
        assert (there["doc_id"], here["doc_id"]) == (before.id, piece.id)
        assert before.content[slice(*there["range"])] == piece.content[slice(*here["range"])] != ""
    bare = Qwen3DocumentSplitter("tiny", split_length=64, split_overlap=0).run([Document(content=REPEATING)])
    assert all("_split_overlap" not in piece.meta for piece in bare["documents"])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_beside_the_generic_splitter(splitter, text):
    theirs = DocumentSplitter(split_by="word", split_length=64, split_overlap=16).run([Document(content=text)])
    ours = splitter.run([Document(content=text)])["documents"]
    assert max(count_tokens(piece.content) for piece in ours) <= 64
    # A limit of words is none of tokens.
    assert max(count_tokens(piece.content) for piece in theirs["documents"]) > 64


def test_load_split_embed_write_retrieve_and_show_the_place(tmp_path):
    path = tmp_path / "handbook.txt"
    path.write_text(HANDBOOK, encoding="utf-8")
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    indexing = Pipeline()
    indexing.add_component("loader", TextFileToDocument(store_full_path=True))
    indexing.add_component("splitter", Qwen3DocumentSplitter("tiny", **SIZES))
    indexing.add_component("embedder", Qwen3DocumentEmbedder("tiny", progress_bar=False))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("loader", "splitter")
    indexing.connect("splitter", "embedder")
    indexing.connect("embedder", "writer")
    indexing = Pipeline.loads(indexing.dumps())
    store = indexing.get_component("writer").document_store
    indexing.run({"loader": {"sources": [str(path)]}})
    search = Pipeline()
    search.add_component("embedder", Qwen3TextEmbedder("tiny", progress_bar=False))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    search.connect("embedder.embedding", "retriever.query_embedding")
    (hit,) = search.run({"embedder": {"text": QUESTION}})["retriever"]["documents"]
    start = hit.meta["split_idx_start"]
    assert hit.meta["file_path"] == str(path)
    assert path.read_text(encoding="utf-8")[start : start + len(hit.content)] == hit.content
    assert ANSWER in hit.content


def test_documents_are_not_mutated_and_their_meta_is_copied(splitter):
    document = Document(content=REPEATING, meta={"tags": ["a"]})
    before = copy.deepcopy(document.to_dict())
    first, second, *_ = splitter.run([document])["documents"]
    first.meta["tags"].append("b")
    assert document.to_dict() == before
    assert second.meta["tags"] == ["a"]
    assert second.meta["source_id"] == document.id


def test_documents_without_content_as_in_the_generic_splitter(splitter):
    empty, full, missing = Document(content=""), Document(content="text"), Document(content=None)
    for component in (splitter, DocumentSplitter()):
        assert [piece.content for piece in component.run([empty, full])["documents"]] == ["text"]
        assert component.run([]) == {"documents": []}
        with pytest.raises(ValueError, match=missing.id):
            component.run([full, missing])
    for kept in (
        Qwen3DocumentSplitter("tiny", **SIZES, skip_empty_documents=False),
        DocumentSplitter(skip_empty_documents=False),
    ):
        assert [piece.content for piece in kept.run([empty])["documents"]] == [""]


@pytest.mark.parametrize("text", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("split_overlap", [0, 16, 32])
def test_no_piece_is_blank(text, split_overlap):
    splitter = Qwen3DocumentSplitter("tiny", split_length=64, split_overlap=split_overlap)
    document = Document(content=text, meta={"name": "given"})
    pieces = splitter.run([document])["documents"]
    check_visible(text, places(pieces), 64)
    assert [text[start:end] for start, end in places(pieces)] == [piece.content for piece in pieces]
    assert len(pieces) < len(splitter.encoder.split(text, 64, split_overlap))
    assert [piece.meta["split_id"] for piece in pieces] == [*range(len(pieces))]
    ids = {piece.id for piece in pieces}
    assert {shared["doc_id"] for piece in pieces for shared in piece.meta.get("_split_overlap", [])} <= ids


@pytest.mark.parametrize("text", ["", *BLANKS.values()], ids=["empty", *BLANKS])
def test_a_blank_document_is_an_empty_one(splitter, text):
    documents = [Document(content="Copy a folder."), Document(content=text), Document(content="Sort a list.")]
    assert [piece.content for piece in splitter.run(documents)["documents"]] == ["Copy a folder.", "Sort a list."]
    kept = Qwen3DocumentSplitter("tiny", **SIZES, skip_empty_documents=False).run(documents[1:2])["documents"]
    assert [piece.meta["source_id"] for piece in kept] == [documents[1].id]
    assert places(kept) == [(0, splitter.encoder.split(text, 64, 16)[0].end)]
    assert kept[0].meta["_split_overlap"] == []


@pytest.mark.parametrize(
    ("given", "size", "overlap"),
    [({}, 1024, 128), ({"split_length": 512}, 512, 64), ({"split_length": 99, "split_overlap": None}, 99, 12)],
)
def test_the_default_size_is_one_for_retrieval_and_the_overlap_follows_it(given, size, overlap):
    splitter = Qwen3DocumentSplitter("tiny", **given)
    spans = splitter.encoder.split(REAL, size, overlap)
    assert len(spans) > 1
    copies = (Qwen3DocumentSplitter.from_dict(splitter.to_dict()), pickle.loads(pickle.dumps(splitter)))
    for same in (splitter, *copies, copy.deepcopy(splitter)):
        assert same.to_dict() == splitter.to_dict()
        assert places(same.run([Document(content=REAL)])["documents"]) == [(span.start, span.end) for span in spans]
    check_places(REAL, places(splitter.run([Document(content=REAL)])["documents"]), size, overlap)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("meta", None, "must have meta of type dict, got NoneType"),
        ("meta", [("name", "a")], "must have meta of type dict, got list"),
        ("content", 3, "must have content of type str, got int"),
        ("content", b"text", "must have content of type str, got bytes"),
    ],
)
def test_documents_that_were_made_wrong_are_named_before_any_work(splitter, name, value, message):
    document = Document(content="text")
    object.__setattr__(document, name, value)
    with pytest.raises(TypeError, match=rf"the document at index 1 \(ID {document.id}\) {message}"):
        splitter.run([Document(content="fine"), document])
    assert splitter.encoder._held_tokenization is None


def test_wrong_input_is_named_before_any_work(splitter):
    with pytest.raises(
        TypeError, match="Qwen3DocumentSplitter expects a list of Documents, got str; to split a string"
    ):
        splitter.run("text")
    with pytest.raises(TypeError, match="index 1 must be a Document, got str; to split a string"):
        splitter.run([Document(content="fine"), "text"])
    with pytest.raises(ValueError, match=r"document at index 1 \(ID \w+\) has no content to split"):
        splitter.run([Document(content="fine"), Document(content=None)])
    assert splitter.encoder._held_tokenization is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"split_length": 15}, ValueError, "split_length must be at least 16, got 15"),
        (
            {"split_length": 100, "split_overlap": 51},
            ValueError,
            "split_overlap must be between 0 and 50, half of split_length, got 51",
        ),
        ({"split_overlap": "2"}, TypeError, "split_overlap must be an integer, got '2'"),
        ({"encoder": "tiny"}, TypeError, "encoder must be a Qwen3Encoder, whose tokenizer counts, got 'tiny'"),
        ({"token": "hf_do_not_show"}, TypeError, "token must be a Secret, got a str"),
    ],
)
def test_settings_are_checked_when_it_is_made(settings, error, message):
    with pytest.raises(error, match=message) as caught:
        Qwen3DocumentSplitter(**settings)
    assert "hf_do_not_show" not in str(caught.value)


def test_an_encoder_gives_its_tokenizer(splitter):
    encoder = Qwen3Encoder("tiny", dimensions=64)
    shared = Qwen3DocumentSplitter(encoder=encoder, **SIZES)
    assert shared.encoder is encoder
    assert shared.to_dict() == splitter.to_dict()
    assert shared.run([Document(content=REPEATING)]) == splitter.run([Document(content=REPEATING)])
    with pytest.raises(ValueError, match="model='8B' has no effect beside encoder="):
        Qwen3DocumentSplitter("8B", encoder=encoder)


def test_warm_up_loads_the_tokenizer_only(splitter):
    assert splitter.encoder._held_tokenization is None
    splitter.warm_up()
    assert splitter.encoder._held_tokenization is not None
    splitter.run([Document(content=REPEATING)])
    assert splitter.encoder._held_engine is None
    splitter.close()
    assert splitter.encoder._held_tokenization is None


def test_to_dict_round_trips_all_settings():
    given = {
        "model": "0.6B",
        "split_length": 400,
        "split_overlap": 40,
        "skip_empty_documents": False,
        "revision": "main",
        "cache_folder": "/tmp/cache",
        "local_files_only": True,
        "token": Secret.from_env_var("QWEN3_TEST_TOKEN", strict=False),
    }
    data = Qwen3DocumentSplitter(**given).to_dict()
    assert data["type"] == "qwen3_embed_integrations.haystack.Qwen3DocumentSplitter"
    assert data["init_parameters"] == {**given, "token": given["token"].to_dict()}
    again = Qwen3DocumentSplitter.from_dict(data)
    assert again.to_dict() == data
    assert again.token == given["token"]


def test_a_pipeline_through_yaml_splits_the_same(splitter):
    pipeline = Pipeline()
    pipeline.add_component("splitter", splitter)
    loaded = Pipeline.loads(pipeline.dumps())
    assert loaded.dumps() == pipeline.dumps()
    data = {"splitter": {"documents": [Document(content=REPEATING)]}}
    assert loaded.run(data) == pipeline.run(data)


def test_tokens_stay_secret(monkeypatch):
    splitter = Qwen3DocumentSplitter("tiny", **SIZES, token=Secret.from_token("hf_do_not_show"))
    with pytest.raises(ValueError, match="Cannot serialize token-based secret"):
        splitter.to_dict()
    assert b"hf_do_not_show" not in pickle.dumps(splitter)
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_show")
    from_environment = Qwen3DocumentSplitter("tiny", **SIZES)
    assert from_environment.encoder._source.token == "hf_do_not_show"
    assert "hf_do_not_show" not in str(from_environment.to_dict()) + repr(from_environment)
    again = pickle.loads(pickle.dumps(from_environment))
    assert again.run([Document(content=REPEATING)]) == from_environment.run([Document(content=REPEATING)])
