"""Whose prompt stands before a text: the caller's, the model's own, or what its author saved with it."""

from __future__ import annotations

import json
import logging
import shutil
import warnings

import numpy as np
import pytest
from haystack import Document
from sentence_transformers import SentenceTransformer

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder, format_query
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder
from qwen3_embed_integrations.instructions import query_prompt
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from tests.conftest import TASK, as_query, cosines
from tests.engine.test_model_files import in_cache
from tests.misbehaving_server import Model, serving

TEXTS = ["how do I copy a folder?", "def f(x): ...", "", "你好"]
OWN = {"query": "search_query: ", "document": "search_document: "}
TEMPLATE = f"Instruct: {TASK}\nQuery:"


def close(found, expected):
    return cosines(np.asarray(found), expected).min() > 0.99999


@pytest.fixture
def saved(model_folder, tmp_path):
    """Make a copy of the random model with other prompts."""

    def save(**config):
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(model_folder, folder)
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
        return folder

    return save


def encoder(folder, **settings):
    return Qwen3Encoder(folder, dtype="float32", device="cpu", **settings)


def before(prompt):
    return [prompt + text for text in TEXTS]


def test_a_fine_tunes_own_prompts_are_its_defaults(saved, reference):
    folder = saved(prompts=OWN)
    found = encoder(folder)
    assert close(found.encode_queries(TEXTS), reference(before("search_query: ")))
    assert close(found.encode_documents(TEXTS), reference(before("search_document: ")))
    assert (found.query_instruction, found.document_instruction) == ("search_query: ", "search_document: ")


@pytest.mark.parametrize("prompts", [OWN, {"query": "q: ", "document": ""}, {"query": "", "document": "d: "}])
def test_they_are_what_sentence_transformers_does_with_them(saved, prompts):
    folder = saved(prompts=prompts)
    model, found = SentenceTransformer(str(folder), device="cpu"), encoder(folder)
    assert close(found.encode_queries(TEXTS), model.encode_query(TEXTS, normalize_embeddings=True))
    assert close(found.encode_documents(TEXTS), model.encode_document(TEXTS, normalize_embeddings=True))


@pytest.mark.parametrize(
    ("config", "query", "document"),
    [
        ({"prompts": {"query": "q: ", "document": "", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"query": "q: ", "corpus": "c: "}}, "q: ", "c: "),
        ({"prompts": {"all": "a: ", "query": "", "document": ""}, "default_prompt_name": "all"}, "a: ", "a: "),
        ({"prompts": {"query": "q: "}, "default_prompt_name": "query"}, "q: ", ""),
    ],
)
def test_other_names_of_prompts(saved, reference, config, query, document):
    found = encoder(saved(**config))
    assert close(found.encode_queries(TEXTS), reference(before(query)))
    assert close(found.encode_documents(TEXTS), reference(before(document)))


@pytest.mark.parametrize("instruction", ["web_search", TASK, TEMPLATE])
def test_an_explicit_instruction_goes_before_the_saved_prompts(saved, reference, instruction):
    folder = saved(prompts=OWN)
    expected = reference([as_query(text) for text in TEXTS])
    assert close(encoder(folder, query_instruction=instruction).encode_queries(TEXTS), expected)
    assert close(encoder(folder).encode_queries(TEXTS, instruction=instruction), expected)
    assert close(encoder(folder, document_instruction=instruction).encode_documents(TEXTS), expected)
    assert close(encoder(folder).encode_documents(TEXTS, instruction=instruction), expected)


@pytest.mark.parametrize("none", ["", "none"])
def test_no_instruction(saved, reference, none):
    bare = reference(TEXTS)
    for folder in (saved(prompts=OWN), saved(prompts={"query": TEMPLATE, "document": ""})):
        found = encoder(folder, query_instruction=none, document_instruction=none)
        assert close(found.encode_queries(TEXTS), bare)
        assert close(found.encode_documents(TEXTS), bare)
        assert close(encoder(folder).encode_queries(TEXTS, instruction=none), bare)
        assert close(encoder(folder).encode_documents(TEXTS, instruction=none), bare)
    assert format_query("x", none) == "x"
    assert found.query_instruction == ""
    assert found.document_instruction is None


@pytest.mark.parametrize(
    "config", [{"prompts": {"query": "", "document": ""}}, {"prompts": {}}, {"truncate_dim": None}]
)
def test_a_model_saved_without_prompts_gets_the_models_own_and_the_log_says_so_once(saved, reference, caplog, config):
    folder = saved(**config)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert close(encoder(folder).encode_queries(TEXTS), reference([as_query(text) for text in TEXTS]))
            assert close(encoder(folder).encode_documents(TEXTS), reference(TEXTS))
    told = [record for record in caplog.records if "was saved without prompts" in record.message]
    assert len(told) == 1
    assert str(folder) in told[0].message


def test_prompts_that_are_none(saved):
    with pytest.raises(ValueError, match=r"config_sentence_transformers\.json must have an object of strings"):
        encoder(saved(prompts={"query": 3})).encode_queries(TEXTS)


def test_prompts_are_in_the_fingerprints(saved):
    folders = [saved(prompts=prompts) for prompts in (OWN, {**OWN, "query": "q: "}, {**OWN, "document": "d: "})]
    own, other_query, other_document = (encoder(folder) for folder in folders)
    assert own.fingerprint == other_query.fingerprint
    assert own.query_fingerprint != other_query.query_fingerprint
    assert own.fingerprint != other_document.fingerprint
    assert encoder(folders[0], document_instruction="").fingerprint.endswith("doc-none")


def test_a_remote_encoder_with_a_folder_follows(saved):
    folder = saved(prompts=OWN, truncate_dim=40)
    local = encoder(folder)
    with serving(Model(folder)) as server, RemoteEncoder(server.url, model=folder) as remote:
        assert remote.fingerprint == local.fingerprint
        assert remote.query_fingerprint == local.query_fingerprint
        assert remote.dimensions == 40
        assert close(remote.encode_queries(TEXTS), local.encode_queries(TEXTS))
        assert close(remote.encode_documents(TEXTS), local.encode_documents(TEXTS))
        bare = remote.replaced(query_instruction="")
        assert close(bare.encode_queries(TEXTS), encoder(folder, query_instruction="").encode_queries(TEXTS))
        bare.close()


def test_a_model_on_the_hub_follows(saved, reference, tmp_path):
    in_cache(saved(prompts=OWN), tmp_path / "cache", reference=True)
    found = Qwen3Encoder(
        "acme/model", cache_folder=tmp_path / "cache", local_files_only=True, dtype="float32", device="cpu"
    )
    assert close(found.encode_queries(TEXTS), reference(before("search_query: ")))
    assert close(found.encode_documents(TEXTS), reference(before("search_document: ")))


def test_all_adapters_follow(saved, reference):
    settings = {"model": str(saved(prompts=OWN)), "dtype": "float32"}
    queries, documents = reference(before("search_query: ")), reference(before("search_document: "))
    langchain, llama = Qwen3Embeddings(**settings), Qwen3Embedding(**settings)
    assert close(langchain.embed_documents(TEXTS), documents)
    assert close(llama.get_text_embedding_batch(TEXTS), documents)
    embedder = Qwen3DocumentEmbedder(**settings, progress_bar=False)
    found = embedder.run([Document(content=text) for text in TEXTS])["documents"]
    assert close([document.embedding for document in found], documents)
    text_embedder = Qwen3TextEmbedder(**settings, progress_bar=False)
    for embed in (
        langchain.embed_query,
        llama.get_query_embedding,
        lambda text: text_embedder.run(text)["embedding"],
        lambda text: Qwen3TextEmbedder.from_dict(text_embedder.to_dict()).run(text)["embedding"],
        lambda text: Qwen3Embedding.from_dict(llama.to_dict()).get_query_embedding(text),
        Qwen3Embeddings(**langchain.model_dump()).embed_query,
    ):
        assert close([embed(TEXTS[0])], queries[:1])
    assert close([Qwen3Embeddings(**settings, query_instruction="").embed_query(TEXTS[0])], reference(TEXTS[:1]))


@pytest.mark.parametrize(
    ("instruction", "prompt"),
    [
        (TEMPLATE, TEMPLATE),
        (f"{TEMPLATE} ", f"{TEMPLATE} "),
        ("Instruct: Find it\r\nQuery:", "Instruct: Find it\r\nQuery:"),
        ("Instruct: Find the recipe", "Instruct: Find the recipe\nQuery:"),
        ("Instruct: Find the recipe\n", "Instruct: Find the recipe\nQuery:"),
        ("Find the recipe", "Instruct: Find the recipe\nQuery:"),
        ("Instruct the reader how to bake", "Instruct: Instruct the reader how to bake\nQuery:"),
    ],
)
def test_a_prompt_is_not_wrapped_twice(instruction, prompt):
    assert query_prompt(instruction) == prompt


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (f"{TEMPLATE}{{query}}", "must end where the text begins"),
        (f"{TEMPLATE} {{}}", "must end where the text begins"),
        ("Instruct: Find it\\nQuery:", "a backslash and an n"),
    ],
)
def test_templates_that_are_no_prompt(instruction, message):
    with pytest.raises(ValueError, match=message):
        Qwen3Encoder("tiny", query_instruction=instruction)


def test_a_query_that_is_written_out_gets_no_second_instruction(model_folder, reference):
    asked = ["bare", "Instruct: Retrieve code\nQuery:def f", as_query("last"), "Instruct: no query line", "Query: x"]
    expected = reference([as_query("bare"), asked[1], asked[2], as_query(asked[3]), as_query(asked[4])])
    found = encoder(model_folder)
    with pytest.warns(UserWarning, match="the text at index 1 begins with 'Instruct:'"):
        assert close(found.encode_queries(asked), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(found.encode_queries(asked), expected)
    with pytest.warns(UserWarning, match="at index 1"):
        assert close(encoder(model_folder, document_instruction="web_search").encode_documents(asked), expected)
    bare = encoder(model_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(bare.encode_documents(asked), reference(asked))


def test_a_written_query_over_a_server_and_cut(model_folder, reference):
    asked = ["Instruct: Retrieve code\nQuery:def f", "bare"]
    with (
        serving(Model(model_folder)) as server,
        RemoteEncoder(server.url, model=model_folder) as remote,
        pytest.warns(UserWarning, match="at index 0"),
    ):
        assert close(remote.encode_queries(asked), reference([asked[0], as_query("bare")]))
    small = encoder(model_folder, max_tokens=256, document_instruction="legal", long_text="chunk")
    long = "Instruct: Retrieve code\nQuery:" + "word " * 800
    with pytest.warns(UserWarning, match="^the text begins with 'Instruct:'"):
        [found] = small.encode_documents([long])
    bare = encoder(model_folder, max_tokens=256, long_text="chunk")
    # The windows of the bare text are as long as the other's, whose instruction takes tokens of each.
    assert found @ bare.encode_documents([long])[0] > 0.9
