"""Settings that are not known here: refused all at once, with what to do, and without showing what they were given."""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
import traceback
from pathlib import Path

import pytest
from haystack.core.component.component import ComponentMeta
from haystack.utils import Secret
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations._renamed import RENAMED
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3DocumentSplitter, Qwen3TextEmbedder
from qwen3_embed_integrations.langchain import Qwen3Embeddings, Qwen3TextSplitter
from qwen3_embed_integrations.llama_index import Qwen3Embedding, Qwen3NodeParser

PYDANTIC = [Qwen3Embeddings, Qwen3Embedding]
HAYSTACK = [Qwen3TextEmbedder, Qwen3DocumentEmbedder]
CLASSES = [*PYDANTIC, *HAYSTACK, Qwen3Encoder, RemoteEncoder]
SECRET = "sk-do-not-show-0123456789"
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

# Old name and a word of what must be said of it.
OLD = {
    "model_name": "model",
    "model_name_or_path": "model",
    "model_kwargs": "dtype",
    "encode_kwargs": "batch_tokens",
    "query_encode_kwargs": "query_instruction",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "normalize": "unit length",
    "normalize_embeddings": "unit length",
    "text_instruction": "document_instruction",
    "embed_instruction": "document_instruction",
    "query_prompt": "query_instruction",
    "prompts": "query_instruction",
    "default_prompt_name": "query_instruction",
    "prefix": "query_instruction",
    "suffix": "end token",
    "truncate_dim": "dimensions",
    "batch_size": "batch_tokens",
    "embed_batch_size": "batch_tokens",
    "trust_remote_code": "never",
    "openai_api_key": "api_key",
    "openai_api_base": "base_url",
    "api_base": "base_url",
    "api_base_url": "base_url",
    "multi_process": "device",
    "parallel_process": "device",
    "target_devices": "device",
    "show_progress_bar": "show_progress",
    "precision": "float32",
    "tokenizer_kwargs": "max_tokens",
    "config_kwargs": "max_tokens",
    "backend": "fastest",
    "pooling": "end token",
    "cache_dir": "cache_folder",
    "use_auth_token": "token",
}


def refusal(make, *args, **settings):
    """The error, and all the text that it shows anywhere."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make(*args, **settings)
    error = caught.value
    shown = [str(error), repr(error), "".join(traceback.format_exception(error))]
    if isinstance(error, ValidationError):
        shown += [str(error.errors()), error.json()]
    context = error.__context__ or error.__cause__
    return error, "\n".join([*shown, repr(context), str(context)])


def settings_of(kind):
    return set(kind.model_fields) if kind in PYDANTIC else {*inspect.signature(kind.__init__).parameters} - {"self"}


def made(kind):
    return {"base_url": "http://host/v1"} if kind is RemoteEncoder else {"model": "tiny"}


@pytest.mark.parametrize("kind", CLASSES)
def test_all_old_names_are_refused_at_once_with_what_to_do_here(kind):
    old = {name: SECRET for name in OLD if name not in settings_of(kind)}
    assert len(old) >= len(OLD) - 2
    error, shown = refusal(kind, **made(kind), **old)
    assert isinstance(error, ValidationError if kind in PYDANTIC else TypeError)
    assert kind.__name__ in str(error)
    for name in old:
        assert re.search(rf"\b{name}\b[^(]*\(here: [^()]*(\([^()]*\)[^()]*)*{OLD[name]}", str(error)), name
    assert SECRET not in shown
    assert not re.search(r"_Embedder|EncoderFields|TokenizerFields", str(error))


@pytest.mark.parametrize("kind", CLASSES)
def test_other_unknown_names(kind):
    unknown = {"dimension": SECRET, "entirely_unknown": SECRET, "hf_token": {"a": SECRET}}
    error, shown = refusal(kind, **made(kind), **unknown)
    assert "did you mean 'dimensions'?" in str(error)
    assert "entirely_unknown" in str(error)
    assert "hf_token" in str(error)
    assert SECRET not in shown
    if kind is not RemoteEncoder:
        error, _ = refusal(kind, **made(kind), timeout=5)
        assert "here: of a RemoteEncoder, which adapters take as encoder" in str(error)
    error, _ = refusal(kind, *["tiny"] * 3)
    assert re.match(rf"{kind.__name__}: too many positional arguments", str(error))


def test_settings_of_the_other_encoder_are_told_as_such():
    assert "'base_url' (here: of a RemoteEncoder, for" in str(refusal(Qwen3Encoder, base_url="http://host/v1")[0])
    error, _ = refusal(RemoteEncoder, "http://host/v1", device="cpu", dtype="float32", token=SECRET)
    assert str(error).count("of a Qwen3Encoder, for a model that is loaded here") == 3
    assert "here: show_progress" in str(refusal(Qwen3Embeddings, model="tiny", progress_bar=True)[0])
    assert "in Haystack progress_bar" in str(refusal(Qwen3TextEmbedder, "tiny", show_progress=True)[0])
    with pytest.raises(TypeError, match="RemoteEncoder: missing a required argument: 'base_url'"):
        RemoteEncoder()


@pytest.mark.parametrize("kind", PYDANTIC)
@pytest.mark.parametrize(
    "wrong",
    [
        {"token": [SECRET]},
        {"token": SECRET, "local_files_only": "maybe"},
        {"token": SECRET, "dimensions": 1},
        {"base_url": "http://host/v1", "api_key": {"key": SECRET}},
        {"base_url": "http://host/v1", "api_key": SECRET, "device": "cpu"},
        {"base_url": "http://host/v1", "api_key": SECRET + "\n" + SECRET, "show_progress": "{"},
        {"base_url": {"key": SECRET}},
        {"base_url": f"https://user:{SECRET}@host/v1"},
        {"base_url": f"https://user:{SECRET}@host/v1", "encoder": Qwen3Encoder("tiny")},
        {"token": SECRET.encode(), "show_progress": 7},
        {"api_key": SECRET, "encoder": Qwen3Encoder("tiny")},
        {"long_text": SECRET},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_no_error_of_a_known_setting_shows_a_secret(kind, wrong):
    model = {} if "encoder" in wrong else {"model": "tiny"}
    for make in (lambda given: kind(**given), kind.model_validate):
        error, shown = refusal(make, {**model, **wrong})
        assert SECRET not in shown
        assert not isinstance(error, ValidationError) or kind.__name__ in str(error)


@pytest.mark.parametrize("kind", PYDANTIC)
def test_an_assignment_and_a_copy_show_none_either(kind):
    embeddings = kind(model="tiny")
    for name in ("token", "api_key", "encoder"):
        _, shown = refusal(setattr, embeddings, name, SECRET)
        assert "Field is frozen" in shown
        assert SECRET not in shown
    error, shown = refusal(embeddings.model_copy, update={"truncate_dim": SECRET, "normalise": SECRET})
    assert f"{kind.__name__} has no setting truncate_dim (here: dimensions), normalise" in str(error)
    assert SECRET not in shown
    error, shown = refusal(kind.model_validate, {"model": "tiny", "openai_api_key": SECRET, "max_length": 3})
    assert "here: api_key" in str(error)
    assert "here: max_tokens" in str(error)
    assert SECRET not in shown


@pytest.mark.parametrize("kind", HAYSTACK)
def test_a_haystack_component_lists_its_settings(kind):
    constructor = inspect.signature(kind.__init__)
    signature = inspect.signature(kind)
    assert [*signature.parameters] == [*constructor.parameters][1:]
    assert not any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in constructor.parameters.values())
    assert set(Qwen3Encoder("tiny").settings.to_dict()) < set(signature.parameters)
    for text in (pydoc.render_doc(kind), kind.__init__.__doc__):
        for name in signature.parameters:
            assert re.search(rf"\b{name}\b", text), name
    # What Haystack reads where a hook is called before a component is made.
    assert ComponentMeta._positional_to_kwargs(kind, ("tiny",)) == {"model": "tiny"}


def test_the_two_haystack_embedders_take_the_same_settings():
    text, document = (inspect.signature(kind).parameters for kind in HAYSTACK)
    own = {"meta_fields_to_embed", "embedding_separator"}
    assert {name: document[name] for name in document if name not in own} == dict(text)
    lines = [inspect.cleandoc(kind.__init__.__doc__).splitlines() for kind in HAYSTACK]
    assert [line for line in lines[1] if not line.strip().startswith(tuple(own))] == lines[0]


@pytest.mark.parametrize("kind", HAYSTACK)
def test_a_haystack_component_passes_every_setting_on(kind):
    given = {
        "dimensions": 64,
        "query_instruction": "legal",
        "document_instruction": "legal",
        "max_tokens": 99,
        "long_text": "error",
        "dtype": "float32",
        "quantization": "int8",
        "batch_tokens": 77,
        "cache_folder": "/tmp/cache",
        "local_files_only": True,
        "token": Secret.from_env_var("QWEN3_TEST_TOKEN", strict=False),
        "progress_bar": False,
    }
    parameters = kind("tiny", **given).to_dict()["init_parameters"]
    assert {name: parameters[name] for name in given} == {**given, "token": given["token"].to_dict()}
    remote = kind("0.6B", base_url="http://host/v1", api_key=Secret.from_token("x"))
    assert (remote.encoder.settings.base_url, remote.encoder._key.get_secret_value()) == ("http://host/v1", "x")


def test_every_argument_of_sentence_transformers_is_understood():
    understood = {name for names, _ in RENAMED for name in names} | settings_of(Qwen3Encoder)
    # What has to do with making a model of parts, and not with using one; and what the method itself takes.
    own = {"self", "modules", "model_card_data", "inputs", "sentences", "kwargs", "chunk_size"}
    for method in (SentenceTransformer.__init__, SentenceTransformer.encode):
        assert {*inspect.signature(method).parameters} - own - {"show_progress_bar"} <= understood


def test_what_is_advised_exists():
    known = set.union(*map(settings_of, CLASSES)) | {"RemoteEncoder", "Quantizer", "torch_dtype"}
    names = [name for names, _ in RENAMED for name in names]
    assert len(names) == len(set(names))
    advised = {word for _, advice in RENAMED for word in re.findall(r"`(\w+)`", advice)}
    assert advised <= known
    assert set(OLD) <= set(names)


def test_a_splitter_tells_unknown_names_too():
    error, _ = refusal(Qwen3NodeParser, model="tiny", model_name="0.6B", max_length=3)
    assert "here: model" in str(error)
    assert "here: max_tokens" in str(error)


def as_markdown():
    """What the README shows of the table; `python -m tests.test_names` prints it."""
    rows = [f"| {', '.join(f'`{name}=`' for name in names)} | {advice} |" for names, advice in RENAMED]
    return "\n".join(["| elsewhere | here |", "|---|---|", *rows, ""])


@pytest.mark.parametrize("kind", [Qwen3TextSplitter, Qwen3DocumentSplitter, Qwen3NodeParser])
def test_splitters_know_the_names_too(kind):
    error, _ = refusal(kind, model="tiny", model_name_or_path="a", cache_dir="b", nonsense=1)
    for part in (kind.__name__, "model_name_or_path", "(here: model)", "(here: cache_folder)", "nonsense"):
        assert part in str(error)


def test_the_readme_has_the_table():
    assert as_markdown() in README


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
