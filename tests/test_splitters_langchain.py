"""LangChain's splitter: exact places, exact sizes, and the way from a file to a hit."""

from __future__ import annotations

import copy
import pickle

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter, TextSplitter
from pydantic import SecretStr
from transformers import AutoTokenizer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.langchain import Qwen3Embeddings, Qwen3TextSplitter
from qwen3_embed_integrations.models import TINY_FOLDER
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


@pytest.fixture
def splitter():
    return Qwen3TextSplitter("tiny", chunk_size=64, chunk_overlap=16, add_start_index=True)


def places(chunks):
    starts = [chunk.metadata["start_index"] for chunk in chunks]
    return [(start, start + len(chunk.page_content)) for start, chunk in zip(starts, chunks, strict=True)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_chunks_are_the_windows_of_the_core(splitter, text):
    chunks = splitter.create_documents([text])
    spans = Qwen3Encoder("tiny").split(text, 64, 16)
    assert places(chunks) == [(span.start, span.end) for span in spans]
    assert [chunk.page_content for chunk in chunks] == [text[span.start : span.end] for span in spans]
    assert splitter.split_text(text) == [chunk.page_content for chunk in chunks]
    check_places(text, places(chunks), 64, 16)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_beside_the_generic_splitter(splitter, text):
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    generic = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
        tokenizer, chunk_size=64, chunk_overlap=16, add_start_index=True
    )
    theirs, ours = generic.create_documents([text]), splitter.create_documents([text])
    assert max(count_tokens(chunk.page_content) for chunk in ours) <= 64
    assert len({place for start, end in places(ours) for place in range(start, end)}) == len(text)
    assert len(ours) <= 2 * len(theirs)


def test_load_split_embed_retrieve_and_show_the_place(tmp_path, splitter):
    from langchain_core.document_loaders import BaseLoader

    path = tmp_path / "handbook.txt"
    path.write_text(HANDBOOK, encoding="utf-8")

    class Loader(BaseLoader):
        def lazy_load(self):
            yield Document(path.read_text(encoding="utf-8"), metadata={"source": str(path)})

    store = InMemoryVectorStore(Qwen3Embeddings(encoder=splitter.encoder))
    store.add_documents(splitter.split_documents(Loader().load()))
    (hit,) = store.as_retriever(search_kwargs={"k": 1}).invoke(QUESTION)
    start = hit.metadata["start_index"]
    assert hit.metadata["source"] == str(path)
    assert path.read_text(encoding="utf-8")[start : start + len(hit.page_content)] == hit.page_content
    assert ANSWER in hit.page_content


async def test_transforming_documents_either_way(splitter):
    documents = [Document(text, metadata={"name": name}) for name, text in TEXTS.items()]
    chunks = splitter.split_documents(iter(documents))
    assert splitter.transform_documents(documents) == chunks
    assert await splitter.atransform_documents(documents) == chunks
    for document in documents:
        own = [chunk for chunk in chunks if chunk.metadata["name"] == document.metadata["name"]]
        check_places(document.page_content, places(own), 64, 16)


def test_metadata_are_copied_for_each_chunk():
    splitter = Qwen3TextSplitter("tiny", chunk_size=64, chunk_overlap=0)
    metadata = {"tags": ["a"], "start_index": "theirs"}
    first, second, *_ = splitter.create_documents([REPEATING], [metadata])
    first.metadata["tags"].append("b")
    assert second.metadata == metadata == {"tags": ["a"], "start_index": "theirs"}
    assert first.metadata == {"tags": ["a", "b"], "start_index": "theirs"}


def test_an_empty_text_has_no_chunks_and_one_that_fits_has_one(splitter):
    assert splitter.split_text("") == RecursiveCharacterTextSplitter().split_text("") == []
    assert splitter.create_documents(["", " short \n"]) == [Document(" short \n", metadata={"start_index": 0})]
    assert splitter.split_documents([]) == []


@pytest.mark.parametrize("text", SPARSE.values(), ids=SPARSE)
def test_no_chunk_is_blank(splitter, text):
    chunks = splitter.create_documents([text])
    check_visible(text, places(chunks), 64)
    assert [text[start:end] for start, end in places(chunks)] == [chunk.page_content for chunk in chunks]
    assert splitter.split_text(text) == [chunk.page_content for chunk in chunks]
    assert len(chunks) < len(splitter.encoder.split(text, 64, 16))


@pytest.mark.parametrize("text", BLANKS.values(), ids=BLANKS)
def test_a_blank_text_has_no_chunks(splitter, text):
    assert splitter.split_text(text) == []
    if not text.strip():
        assert RecursiveCharacterTextSplitter(chunk_size=64, chunk_overlap=16).split_text(text) == []
    documents = [Document("Copy a folder."), Document(text), Document("Sort a list.")]
    assert [chunk.page_content for chunk in splitter.split_documents(documents)] == ["Copy a folder.", "Sort a list."]


@pytest.mark.parametrize(
    ("given", "size", "overlap"),
    [
        ({}, 1024, 128),
        ({"chunk_size": 512}, 512, 64),
        ({"chunk_size": 100}, 100, 12),
        ({"chunk_overlap": 200}, 1024, 200),
    ],
)
def test_the_default_size_is_one_for_retrieval_and_the_overlap_follows_it(given, size, overlap):
    splitter = Qwen3TextSplitter("tiny", **given, add_start_index=True)
    spans = splitter.encoder.split(REAL, size, overlap)
    assert len(spans) > 1
    for same in (splitter, pickle.loads(pickle.dumps(splitter)), copy.deepcopy(splitter)):
        assert places(same.create_documents([REAL])) == [(span.start, span.end) for span in spans]
    check_places(REAL, places(splitter.create_documents([REAL])), size, overlap)


def test_an_overlap_of_none_at_all_is_no_default():
    chunks = Qwen3TextSplitter("tiny", chunk_size=64, chunk_overlap=0).split_text(REPEATING)
    assert "".join(chunks) == REPEATING


def test_constructors_that_bring_another_tokenizer_say_what_to_do_instead():
    tokenizer = AutoTokenizer.from_pretrained(TINY_FOLDER)
    remedy = r"name that model, Qwen3TextSplitter\(model=\.\.\., chunk_size=\.\.\.\)"
    for given in (tokenizer, None):
        with pytest.raises(ValueError, match=f"Qwen3TextSplitter has no from_huggingface_tokenizer: .* {remedy}"):
            Qwen3TextSplitter.from_huggingface_tokenizer(given, chunk_size=64, chunk_overlap=16)
    for given in (("cl100k_base",), ()):
        with pytest.raises(ValueError, match=f"Qwen3TextSplitter has no from_tiktoken_encoder: .* {remedy}"):
            Qwen3TextSplitter.from_tiktoken_encoder(*given, chunk_size=64)


def test_only_the_tokenizer_is_loaded_and_by_the_first_use(model_folder):
    splitter = Qwen3TextSplitter(model_folder, chunk_size=64, chunk_overlap=16)
    assert isinstance(splitter, TextSplitter)
    assert splitter.encoder._held_tokenization is None
    assert len(splitter.split_text(REPEATING)) > 1
    assert splitter.encoder._held_engine is None


def test_an_encoder_gives_its_tokenizer(splitter):
    encoder = Qwen3Encoder("tiny", dimensions=64)
    shared = Qwen3TextSplitter(encoder=encoder, chunk_size=64, chunk_overlap=16)
    assert shared.encoder is encoder
    assert shared.split_text(REPEATING) == splitter.split_text(REPEATING)
    with pytest.raises(ValueError, match="model='tiny' has no effect beside encoder="):
        Qwen3TextSplitter("tiny", encoder=Qwen3Encoder("0.6B"))
    with pytest.raises(TypeError, match="encoder must be a Qwen3Encoder, whose tokenizer counts, got 'tiny'"):
        Qwen3TextSplitter(encoder="tiny")


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"chunk_size": 15}, ValueError, "chunk_size must be at least 16, got 15"),
        (
            {"chunk_size": 100, "chunk_overlap": 51},
            ValueError,
            "chunk_overlap must be between 0 and 50, half of chunk_size, got 51",
        ),
        ({"chunk_overlap": -1}, ValueError, "chunk_overlap must be between 0 and 512"),
        ({"chunk_size": 64.0}, TypeError, "chunk_size must be an integer, got 64.0"),
        ({"chunk_size": None}, TypeError, "chunk_size must be an integer, got None"),
        ({"chunk_overlap": "an eighth"}, TypeError, "chunk_overlap must be an integer, got 'an eighth'"),
    ],
)
def test_sizes_are_checked_when_it_is_made(sizes, error, message):
    with pytest.raises(error, match=message):
        Qwen3TextSplitter("tiny", **sizes)


def test_wrong_input_is_named_before_any_work(splitter):
    with pytest.raises(TypeError, match="index 1 must be a string, got None"):
        splitter.create_documents(["fine", None])
    with pytest.raises(TypeError, match="put it in a list"):
        splitter.create_documents("text")
    with pytest.raises(TypeError, match="the text must be a string, got 3"):
        splitter.split_text(3)
    with pytest.raises(ValueError, match="metadatas must be one per text, got 1 for 2 texts"):
        splitter.create_documents(["a", "b"], [{}])
    with pytest.raises(ValueError, match="metadatas must be one per text, got 0 for 1 texts"):
        splitter.create_documents(["a"], [])
    with pytest.raises(TypeError, match="index 1 must be a Document, got str; to split strings, use create_documents"):
        splitter.split_documents([Document("fine"), "text"])
    assert splitter.encoder._held_tokenization is None


@pytest.mark.parametrize(
    ("metadatas", "message"),
    [
        ([None], "the metadata at index 0 must be a dictionary, {} for none, got None"),
        (
            [{}, [("source", "a")]],
            r"the metadata at index 1 must be a dictionary, {} for none, got \[\('source', 'a'\)\]",
        ),
        (iter([{}, "a"]), "the metadata at index 1 must be a dictionary, {} for none, got 'a'"),
        ({"source": "a"}, "metadatas must be a list of dictionaries, one per text, got dict"),
        ("a", "metadatas must be a list of dictionaries, one per text, got str"),
        (1, "metadatas must be a list of dictionaries, one per text, got int"),
    ],
)
def test_wrong_metadata_are_named_before_any_work(splitter, metadatas, message):
    with pytest.raises(TypeError, match=message):
        splitter.create_documents(["a", "b"], metadatas)
    assert splitter.encoder._held_tokenization is None


def test_documents_that_were_made_wrong_are_named(splitter):
    text, metadata = Document("a"), Document("a")
    text.page_content, metadata.metadata = None, None
    with pytest.raises(TypeError, match="the text at index 1 must be a string, got None"):
        splitter.split_documents([Document("fine"), text])
    with pytest.raises(TypeError, match="the metadata at index 1 must be a dictionary"):
        splitter.transform_documents([Document("fine"), metadata])


def test_metadata_may_come_one_by_one(splitter):
    chunks = splitter.create_documents(["a", "b"], ({"name": name} for name in "ab"))
    assert [chunk.metadata for chunk in chunks] == [{"name": "a", "start_index": 0}, {"name": "b", "start_index": 0}]


def test_copies_split_the_same_and_the_token_shows_nowhere():
    for token in ("hf_do_not_show", SecretStr("hf_do_not_show")):
        splitter = Qwen3TextSplitter("tiny", chunk_size=64, chunk_overlap=16, token=token)
        assert splitter.encoder._source.token == "hf_do_not_show"
        assert "hf_do_not_show" not in repr(splitter) + str(vars(splitter))
        assert b"hf_do_not_show" not in pickle.dumps(splitter)
        for again in (pickle.loads(pickle.dumps(splitter)), copy.deepcopy(splitter)):
            assert again.split_text(REPEATING) == splitter.split_text(REPEATING)
