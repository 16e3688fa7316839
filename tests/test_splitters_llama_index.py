"""LlamaIndex's node parser: exact places and sizes, relationships, and the way from a file to a hit."""

from __future__ import annotations

import copy
import json
import pickle
import re
from itertools import pairwise

import pytest
from llama_index.core import Document, Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import HierarchicalNodeParser, NodeParser, SentenceSplitter, TextSplitter
from llama_index.core.schema import ImageDocument, ImageNode, MetadataMode, NodeRelationship, TextNode
from pydantic import ValidationError
from transformers import AutoTokenizer

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.llama_index import Qwen3Embedding, Qwen3NodeParser
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

SIZES = {"chunk_size": 64, "chunk_overlap": 16}


@pytest.fixture
def parser():
    return Qwen3NodeParser(model="tiny", **SIZES)


def generic_splitter():
    # NLTK's sentences, its default, need a download in older releases.
    sentences = re.compile(r"[^.]+\.?\s*|\.").findall
    tokenize = AutoTokenizer.from_pretrained(TINY_FOLDER).tokenize
    return SentenceSplitter(**SIZES, tokenizer=tokenize, chunking_tokenizer_fn=sentences)


def places(nodes):
    return [(node.start_char_idx, node.end_char_idx) for node in nodes]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_nodes_are_the_windows_of_the_core(parser, text):
    nodes = parser.get_nodes_from_documents([Document(text=text)])
    assert places(nodes) == [(span.start, span.end) for span in Qwen3Encoder("tiny").split(text, 64, 16)]
    assert [node.text for node in nodes] == [text[start:end] for start, end in places(nodes)]
    check_places(text, places(nodes), 64, 16)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_beside_the_generic_splitter(parser, text):
    generic = generic_splitter()
    theirs = generic.get_nodes_from_documents([Document(text=text)])
    ours = parser.get_nodes_from_documents([Document(text=text)])
    assert max(count_tokens(node.text) for node in ours) <= 64
    assert len({place for start, end in places(ours) for place in range(start, end)}) == len(text)
    assert len(ours) <= 2 * len(theirs)
    assert {*ours[1].relationships} == {*theirs[1].relationships}


def test_relationships_and_metadata(parser):
    documents = [Document(text=text, metadata={"name": name}) for name, text in TEXTS.items()]
    nodes = parser.get_nodes_from_documents(documents)
    for document in documents:
        own = [node for node in nodes if node.ref_doc_id == document.id_]
        assert own[0].prev_node is None
        assert own[-1].next_node is None
        for before, node in pairwise(own):
            assert before.next_node.node_id == node.node_id
            assert node.prev_node.node_id == before.node_id
        for node in own:
            assert node.relationships[NodeRelationship.SOURCE].hash == document.hash
            assert node.metadata == document.metadata
            assert document.text[node.start_char_idx : node.end_char_idx] == node.text
    bare = Qwen3NodeParser(model="tiny", **SIZES, include_metadata=False, include_prev_next_rel=False)
    for node in bare.get_nodes_from_documents(documents):
        assert node.metadata == {}
        assert {*node.relationships} == {NodeRelationship.SOURCE}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(
    "template", ["{metadata_str}\n\n{content}", "[{metadata_str}](:{content}", "{content} - {metadata_str}"]
)
def test_what_is_embedded_fits_with_its_metadata(parser, text, template):
    metadata = {"title": "A handbook of buttons", "secret": "left out " * 100}
    document = Document(text=text, metadata=metadata, excluded_embed_metadata_keys=["secret"], text_template=template)
    nodes = parser.get_nodes_from_documents([document])
    sizes = [count_tokens(node.get_content(MetadataMode.EMBED)) for node in nodes]
    assert max(sizes) <= 64
    check_places(text, places(nodes), 64 - 4, 16)
    without = Qwen3NodeParser(model="tiny", **SIZES, include_metadata=False).get_nodes_from_documents([document])
    assert places(without) == [(span.start, span.end) for span in Qwen3Encoder("tiny").split(text, 64, 16)]


def test_metadata_that_leave_no_room_are_refused_before_any_work(parser):
    documents = [Document(text="fine"), Document(text=REPEATING, metadata={"title": "word " * 60})]
    with pytest.raises(ValueError, match=r"metadata of the document at index 1 leave 2 of chunk_size=64 tokens"):
        parser.get_nodes_from_documents(documents)


def test_nodes_that_are_cut_again_keep_their_place_in_the_document(parser):
    document = Document(text=REPEATING)
    large = Qwen3NodeParser(encoder=parser.encoder, chunk_size=256, chunk_overlap=0)
    nodes = parser(large([document]))
    assert {node.ref_doc_id for node in nodes} == {document.id_}
    for node in nodes:
        assert REPEATING[node.start_char_idx : node.end_char_idx] == node.text
    assert places(nodes)[0][0] == 0
    assert places(nodes)[-1][1] == len(REPEATING)


async def test_called_asynchronously_it_gives_the_same(parser):
    documents = [Document(text=text) for text in TEXTS.values()]
    nodes = await parser.acall(documents)
    assert [node.text for node in nodes] == [node.text for node in parser(documents)]
    assert places(nodes) == places(parser(documents))


def test_empty_texts_images_and_ids_as_in_other_parsers():
    parser = Qwen3NodeParser(model="tiny", **SIZES, id_func=lambda index, document: f"{document.id_}-{index}")
    nodes = parser.get_nodes_from_documents(
        [Document(text="", id_="empty"), ImageDocument(text="of an image", id_="image"), TextNode(text="x", id_="node")]
    )
    assert [(node.node_id, node.text) for node in nodes] == [
        ("empty-0", ""),
        ("image-0", "of an image"),
        ("node-0", "x"),
    ]
    assert isinstance(nodes[1], ImageNode)
    assert parser.get_nodes_from_documents([]) == []


@pytest.mark.parametrize("text", SPARSE.values(), ids=SPARSE)
@pytest.mark.parametrize("metadata", [{}, {"title": "A handbook of buttons"}], ids=["bare", "metadata"])
def test_no_node_is_blank_and_those_left_are_neighbours(parser, text, metadata):
    nodes = parser.get_nodes_from_documents(
        [Document(text=text, metadata=metadata), Document(text="Another document.")]
    )
    *nodes, other = nodes
    check_visible(text, places(nodes), 64)
    assert max(count_tokens(node.get_content(MetadataMode.EMBED)) for node in nodes) <= 64
    assert [text[start:end] for start, end in places(nodes)] == [node.text for node in nodes]
    assert nodes[0].prev_node is None
    assert nodes[-1].next_node is other.prev_node is None
    for before, node in pairwise(nodes):
        assert before.next_node.node_id == node.node_id
        assert node.prev_node.node_id == before.node_id
    assert len(nodes) < len(parser.encoder.split(text, 64, 16))
    if not metadata:
        assert parser.split_text(text) == [node.text for node in nodes]


@pytest.mark.parametrize("text", BLANKS.values(), ids=BLANKS)
@pytest.mark.parametrize("metadata", [{}, {"title": "A handbook of buttons"}], ids=["bare", "metadata"])
def test_a_blank_text_has_no_nodes(parser, text, metadata):
    if not text.strip():
        assert generic_splitter()([Document(text=text, metadata=metadata)]) == []
    assert parser([Document(text=text, metadata=metadata)]) == []
    texts = ["Copy a folder.", text, "Sort a list."]
    assert [node.text for node in parser([Document(text=text) for text in texts])] == ["Copy a folder.", "Sort a list."]
    assert parser.split_texts(texts) == ["Copy a folder.", "Sort a list."]


def test_splitting_bare_texts_as_the_generic_splitter_does(parser):
    assert isinstance(parser, TextSplitter)
    assert parser.split_text("") == generic_splitter().split_text("") == [""]
    assert parser.split_text("text") == ["text"]
    pieces = [node.text for node in parser([Document(text=text) for text in TEXTS.values()])]
    assert parser.split_texts([*TEXTS.values()]) == pieces
    with pytest.raises(TypeError, match="must be a string, got None"):
        parser.split_text(None)
    with pytest.raises(TypeError, match="the text at index 1 must be a string, got None"):
        parser.split_texts(["fine", None])
    with pytest.raises(TypeError, match="put it in a list"):
        parser.split_texts("text")


@pytest.mark.parametrize(
    ("given", "size", "overlap"),
    [
        ({}, 1024, 128),
        ({"chunk_size": 512}, 512, 64),
        ({"chunk_size": 100, "chunk_overlap": None}, 100, 12),
        ({"chunk_overlap": 0}, 1024, 0),
    ],
)
def test_the_default_size_is_one_for_retrieval_and_the_overlap_follows_it(given, size, overlap):
    document = Document(text=REAL)
    parser = Qwen3NodeParser(model="tiny", **given)
    spans = parser.encoder.split(REAL, size, overlap)
    assert len(spans) > 1
    again = [
        Qwen3NodeParser.from_dict(parser.to_dict()),
        Qwen3NodeParser.from_json(parser.to_json()),
        Qwen3NodeParser.from_defaults(model="tiny", **given),
        pickle.loads(pickle.dumps(parser)),
        copy.copy(parser),
        parser.model_copy(deep=True),
    ]
    for same in (parser, *again):
        assert (same.chunk_size, same.chunk_overlap) == (size, overlap)
        assert same.to_dict() == parser.to_dict()
        assert places(same([document])) == [(span.start, span.end) for span in spans]
    check_places(REAL, places(parser([document])), size, overlap)


def test_made_from_defaults_as_the_generic_splitter():
    debug = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    parser = Qwen3NodeParser.from_defaults(
        256, 20, debug, False, False, model="tiny", id_func=lambda index, _: str(index)
    )
    assert (parser.chunk_size, parser.chunk_overlap) == (256, 20)
    assert parser.callback_manager is debug
    nodes = parser([Document(text=REPEATING, metadata={"title": "A handbook"})])
    assert [node.node_id for node in nodes] == [str(index) for index in range(len(nodes))]
    assert nodes[1].metadata == {}
    assert {*nodes[1].relationships} == {NodeRelationship.SOURCE}
    with pytest.raises(ValidationError, match="chunk_size must be at least 16, got 15"):
        Qwen3NodeParser.from_defaults(chunk_size=15, model="tiny")
    with pytest.raises(ValidationError, match="paragraph_separator"):
        Qwen3NodeParser.from_defaults(paragraph_separator="\n", model="tiny")


@pytest.fixture
def settings(monkeypatch):
    """LlamaIndex's, which are as they were afterwards."""
    for name in ("_node_parser", "_transformations", "_embed_model"):
        monkeypatch.setattr(Settings, name, None)
    return Settings


@pytest.mark.parametrize("name", ["node_parser", "text_splitter"])
def test_llama_indexs_settings_set_its_sizes(settings, name):
    setattr(settings, name, Qwen3NodeParser(model="tiny"))
    assert (settings.chunk_size, settings.chunk_overlap) == (1024, 128)
    settings.chunk_size = 256
    assert (settings.chunk_size, settings.chunk_overlap) == (256, 32)
    index = VectorStoreIndex.from_documents([Document(text=REAL)], embed_model=Qwen3Embedding(model="tiny"))
    nodes = sorted(index.docstore.docs.values(), key=lambda node: node.start_char_idx)
    check_places(REAL, places(nodes), 256, 32)
    settings.chunk_overlap = 100
    settings.chunk_size = 512
    assert (settings.chunk_size, settings.chunk_overlap) == (512, 100)
    check_places(REAL, places(getattr(settings, name)([Document(text=REAL)])), 512, 100)


@pytest.mark.parametrize("given", [{"chunk_size": 512}, {"chunk_size": 512, "chunk_overlap": 64}])
def test_an_overlap_follows_a_new_size_unless_it_was_given(given):
    parser = Qwen3NodeParser(model="tiny", **given)
    for copied in (pickle.loads(pickle.dumps(parser)), copy.copy(parser), parser.model_copy(deep=True)):
        copied.chunk_size = 1024
        assert copied.chunk_overlap == given.get("chunk_overlap", 128)
        assert copied.model_dump(exclude_unset=True)["chunk_size"] == 1024
    assert parser.model_copy(update={"chunk_size": 1024}).chunk_overlap == given.get("chunk_overlap", 128)
    assert (parser.chunk_size, parser.chunk_overlap) == (512, 64)
    parser.chunk_overlap = 10
    parser.chunk_overlap = None
    parser.chunk_size = 64
    assert parser.chunk_overlap == 8


def test_assigned_sizes_are_checked(settings):
    settings.node_parser = parser = Qwen3NodeParser(model="tiny", **SIZES)
    before = parser.to_dict()
    with pytest.raises(ValueError, match="chunk_size must be at least 16, got 15"):
        settings.chunk_size = 15
    with pytest.raises(ValueError, match="chunk_overlap must be between 0 and 10, half of chunk_size, got 16"):
        settings.chunk_size = 20
    with pytest.raises(ValueError, match="chunk_overlap must be between 0 and 32, half of chunk_size, got 33"):
        settings.chunk_overlap = 33
    for wrong in (64.0, "64", True, None):
        with pytest.raises(TypeError, match=f"chunk_size must be an integer, got {wrong!r}"):
            parser.chunk_size = wrong
        with pytest.raises(TypeError, match=f"chunk_size must be an integer, got {wrong!r}"):
            parser.model_copy(update={"chunk_size": wrong})
    with pytest.raises(ValueError, match="chunk_overlap must be between 0 and 32, half of chunk_size, got 33"):
        parser.model_copy(update={"chunk_overlap": 33})
    assert parser.to_dict() == before
    parser.include_metadata = False
    assert not parser.include_metadata


def test_as_a_level_of_a_hierarchy(parser):
    levels = {"large": Qwen3NodeParser(encoder=parser.encoder, chunk_size=256), "small": parser}
    hierarchy = HierarchicalNodeParser.from_defaults(node_parser_ids=[*levels], node_parser_map=levels)
    nodes = hierarchy.get_nodes_from_documents([Document(text=SPARSE["newlines"])])
    assert all(node.text.strip() for node in nodes)
    assert {bool(node.parent_node) for node in nodes} == {True, False}


def test_load_split_embed_retrieve_and_show_the_place(tmp_path, parser):
    path = tmp_path / "handbook.txt"
    path.write_text(HANDBOOK, encoding="utf-8")
    pipeline = IngestionPipeline(transformations=[parser, Qwen3Embedding(encoder=parser.encoder)])
    nodes = pipeline.run(documents=SimpleDirectoryReader(str(tmp_path)).load_data())
    assert all(count_tokens(node.get_content(MetadataMode.EMBED)) <= 64 for node in nodes)
    index = VectorStoreIndex(nodes, embed_model=Qwen3Embedding(encoder=parser.encoder))
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    assert hit.metadata["file_name"] == path.name
    assert path.read_text(encoding="utf-8")[hit.node.start_char_idx : hit.node.end_char_idx] == hit.text
    assert ANSWER in hit.text


def test_as_a_transformation_of_an_index(parser):
    index = VectorStoreIndex.from_documents(
        [Document(text=HANDBOOK)], transformations=[parser], embed_model=Qwen3Embedding(model="tiny")
    )
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    assert HANDBOOK[hit.node.start_char_idx : hit.node.end_char_idx] == hit.text
    assert ANSWER in hit.text


def test_ingestion_pipeline_in_worker_processes(parser):
    documents = [Document(text=text, metadata={"name": name}) for name, text in TEXTS.items()]
    nodes = IngestionPipeline(transformations=[parser], disable_cache=True).run(documents=documents, num_workers=2)
    assert [node.text for node in nodes] == [node.text for node in parser(documents)]
    assert places(nodes) == places(parser(documents))


def test_the_pipelines_cache_tells_sizes_apart():
    pipeline = IngestionPipeline(transformations=[Qwen3NodeParser(model="tiny", **SIZES)])
    documents = [Document(text=REPEATING)]
    first = pipeline.run(documents=documents)
    assert [node.node_id for node in pipeline.run(documents=documents)] == [node.node_id for node in first]
    pipeline.transformations = [Qwen3NodeParser(model="tiny", chunk_size=32, chunk_overlap=8)]
    assert len(pipeline.run(documents=documents)) > len(first)


def test_callbacks_carry_documents_and_nodes():
    debug = LlamaDebugHandler(print_trace_on_end=False)
    parser = Qwen3NodeParser(model="tiny", **SIZES, callback_manager=CallbackManager([debug]))
    documents = [Document(text=REPEATING)]
    nodes = parser.get_nodes_from_documents(documents, show_progress=True)
    ((start, end),) = debug.get_event_pairs(CBEventType.NODE_PARSING)
    assert start.payload[EventPayload.DOCUMENTS] == documents
    assert end.payload[EventPayload.NODES] == nodes


def test_round_trips_of_all_settings(model_folder):
    parser = Qwen3NodeParser(
        model=model_folder, **SIZES, local_files_only=True, include_metadata=False, include_prev_next_rel=False
    )
    data = parser.to_dict()
    assert data["class_name"] == Qwen3NodeParser.class_name() == "Qwen3NodeParser"
    assert {"model", "revision", "cache_folder", "local_files_only", *SIZES} <= {*data}
    assert "token" not in data
    again = Qwen3NodeParser.from_dict(json.loads(json.dumps(data)))
    assert again.to_dict() == data
    assert Qwen3NodeParser.from_json(parser.to_json()).to_dict() == data
    assert pickle.loads(pickle.dumps(parser)).to_dict() == data
    documents = [Document(text=REPEATING)]
    assert (
        places(again(documents)) == places(pickle.loads(pickle.dumps(parser))(documents)) == places(parser(documents))
    )


def test_a_named_id_func_has_to_be_passed_again(parser):
    data = {**parser.to_dict(), "id_func": {"id_func_name": "mine", "title": "id_func"}}
    with pytest.raises(ValidationError, match="id_func that was serialised by its name has to be passed again"):
        Qwen3NodeParser.from_dict(data)
    again = Qwen3NodeParser.from_dict(data, id_func=lambda index, document: str(index))
    assert again([Document(text="x")])[0].node_id == "0"


def test_the_token_shows_nowhere():
    parser = Qwen3NodeParser(model="tiny", **SIZES, token="hf_do_not_show")
    assert parser.encoder._source.token == "hf_do_not_show"
    shown = [repr(parser), str(parser.to_dict()), parser.to_json()]
    assert not any("hf_do_not_show" in text for text in shown)
    assert b"hf_do_not_show" not in pickle.dumps(parser)
    with pytest.raises(ValidationError) as caught:
        Qwen3NodeParser(model="tiny", token="hf_do_not_show", chunk_size=1)
    assert "hf_do_not_show" not in str(caught.value) + str(caught.value.errors())


def test_only_the_tokenizer_is_loaded_and_by_the_first_use(parser):
    assert isinstance(parser, NodeParser)
    assert parser.encoder._held_tokenization is None
    assert len(parser([Document(text=REPEATING)])) > 1
    assert parser.encoder._held_engine is None


def test_an_encoder_gives_its_tokenizer(parser):
    encoder = Qwen3Encoder("tiny", dimensions=64)
    shared = Qwen3NodeParser(encoder=encoder, **SIZES)
    assert shared.encoder is encoder
    assert shared.model == "tiny"
    assert shared.to_dict() == parser.to_dict()
    assert places(shared([Document(text=REPEATING)])) == places(parser([Document(text=REPEATING)]))


def test_wrong_settings_are_refused():
    with pytest.raises(ValidationError, match="chunk_size must be at least 16, got 15"):
        Qwen3NodeParser(model="tiny", chunk_size=15)
    with pytest.raises(ValidationError, match="chunk_overlap must be between 0 and 50, half of chunk_size, got 51"):
        Qwen3NodeParser(model="tiny", chunk_size=100, chunk_overlap=51)
    with pytest.raises(TypeError, match=r"chunk_size must be an integer, got 64\.0"):
        Qwen3NodeParser(model="tiny", chunk_size=64.0)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Qwen3NodeParser(model="tiny", separator=" ")
    with pytest.raises(ValidationError, match="revision='main' has no effect beside encoder="):
        Qwen3NodeParser(encoder=Qwen3Encoder("tiny"), revision="main")
    with pytest.raises((ValidationError, TypeError), match="encoder must have encode_queries"):
        Qwen3NodeParser(encoder="tiny")
    with pytest.raises(ValidationError, match="Field is frozen"):
        Qwen3NodeParser(model="tiny").revision = "main"


def test_another_kind_of_encoder_is_refused():
    from tests.test_llama_index import Counting

    with pytest.raises(TypeError, match="encoder must be a Qwen3Encoder, whose tokenizer counts"):
        Qwen3NodeParser(encoder=Counting())


def test_wrong_input_is_named_before_any_work(parser):
    with pytest.raises(TypeError, match="index 1 must be a Document or a TextNode, got str"):
        parser.get_nodes_from_documents([Document(text="fine"), "text"])
    with pytest.raises(TypeError, match="index 0 must be a Document or a TextNode, got str"):
        parser("text")
    assert parser.encoder._held_tokenization is None
