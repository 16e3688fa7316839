"""What is wrong with a model's files is an error that names them, and what is right still loads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import Qwen3Config, Qwen3ForCausalLM
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.cost import estimate
from tests.conftest import as_query, cosines

TEXTS = ["Copy a directory tree.", "def area(r):\n    return 3.14 * r ** 2", "你好", "", "one two three four five six"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 1191586416\n"


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the random model, to be changed."""
    return shutil.copytree(model_folder, tmp_path / "model")


def encoder(folder, **settings):
    return Qwen3Encoder(folder, dtype="float32", device="cpu", **settings)


def change_json(path, **changes):
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({name: value for name, value in {**found, **changes}.items() if value is not None}))


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def renamed(name):
    return lambda tensors: {name(old): tensor for old, tensor in tensors.items()}


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def unmerged_lora(tensors):
    query = "layers.0.self_attn.q_proj."
    kept = without(f"{query}weight")(tensors)
    adapter = {f"{query}lora_A.default.weight": torch.ones(4, 64), f"{query}lora_B.default.weight": torch.ones(64, 4)}
    return {**kept, f"{query}base_layer.weight": tensors[f"{query}weight"], **adapter}


def narrower(tensors):
    return {**tensors, "norm.weight": tensors["norm.weight"][:32].clone()}


UNFIT = [
    (renamed("base_model.model.{}".format), r"lack: embed_tokens\.weight.*PEFT model: merge"),
    (renamed("base_model.model.model.{}".format), "PEFT model: merge"),
    (renamed("_orig_mod.{}".format), "compiled model: save model._orig_mod"),
    (renamed("model._orig_mod.{}".format), "compiled model"),
    (renamed("module.{}".format), "DataParallel"),
    (renamed("0.auto_model.{}".format), "sentence-transformers' own"),
    (renamed(lambda name: name.replace("layers.1.", "layers.2.")), r"lack: layers\.1\.\S+.*take: layers\.2\."),
    (without("q_norm"), r"lack: layers\.0\.self_attn\.q_norm\.weight, layers\.1\.self_attn\.q_norm\.weight$"),
    (without("embed_tokens"), r"lack: embed_tokens\.weight$"),
    (unmerged_lora, "lora_A.*LoRA's: merge"),
    (lambda tensors: {**tensors, "score.weight": torch.ones(1, 64)}, r"does not take: score\.weight$"),
    (narrower, r"another shape than config\.json says: norm\.weight \[32\] instead of \[64\]"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_weights_that_do_not_fit_are_refused(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        encoder(folder).encode_documents(TEXTS)


def test_weights_that_do_not_fit_are_refused_in_a_worker_process(folder):
    change_tensors(folder, renamed("base_model.model.{}".format))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(encoder(folder).encode_documents, TEXTS)
        with pytest.raises(ValueError, match="PEFT model"):
            future.result()


def with_prefix_and_head(folder):
    change_tensors(
        folder, lambda tensors: {**renamed("model.{}".format)(tensors), "lm_head.weight": torch.ones(2048, 64)}
    )


def with_old_frequencies(folder):
    extra = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change_tensors(folder, lambda tensors: {**tensors, **extra})


def as_language_model(folder):
    # Tied: transformers saves the embeddings once.
    tensors = load_file(folder / "model.safetensors")
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder))
    model.model.load_state_dict(tensors)
    model.save_pretrained(folder)


def in_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder)).model
    model.load_state_dict(tensors)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def without_modules(folder):
    (folder / "modules.json").unlink()


def without_the_empty_folder(folder):
    # Git keeps no empty folders, and Normalize has no file.
    shutil.rmtree(folder / "2_Normalize", ignore_errors=True)


@pytest.mark.parametrize(
    "change",
    [
        with_prefix_and_head,
        with_old_frequencies,
        as_language_model,
        in_shards,
        without_modules,
        without_the_empty_folder,
    ],
)
def test_what_transformers_accepts_rightly_still_loads(folder, reference, change):
    change(folder)
    found = encoder(folder).encode_documents(TEXTS)
    assert cosines(found, reference(TEXTS)).min() > 0.99999


def test_weights_in_float16_still_load(folder, reference):
    change_tensors(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    found = encoder(folder).encode_documents(TEXTS)
    assert cosines(found, reference(TEXTS)).min() > 0.9999


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


BROKEN = [
    (lambda f: (f / "model.safetensors").write_text(POINTER), r"model\.safetensors is a Git LFS pointer.*git lfs pull"),
    (lambda f: (f / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer.*git lfs pull"),
    (lambda f: cut(f / "model.safetensors"), r"model\.safetensors is not whole, [\d,]+ of [\d,]+ bytes"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is not whole"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), r"model\.safetensors is not whole"),
    (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors: .*fetch"),
    (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"only pytorch_model\.bin, which is not load",
    ),
    (lambda f: cut(f / "tokenizer.json"), r"tokenizer\.json is no tokenizer"),
    (lambda f: (f / "config.json").write_text('{"hidden_size": 64,'), r"config\.json is not whole: it is no JSON"),
    (lambda f: (f / "config.json").write_text("[]"), r"config\.json must hold a JSON object"),
    (lambda f: (f / "modules.json").write_text("{"), r"modules\.json is not whole"),
    (lambda f: (f / "modules.json").write_text("[1]"), r"modules\.json must hold a list of modules"),
    (lambda f: shutil.rmtree(f / "1_Pooling"), r"1_Pooling/config\.json is missing, which modules\.json names"),
    (lambda f: (f / "adapter_config.json").write_text("{}"), r"adapter_config\.json is a PEFT adapter beside a model"),
    (
        lambda f: change_json(f / "config.json", quantization_config={"quant_method": "compressed-tensors"}),
        r"config\.json says that the weights are quantized \(compressed-tensors\)",
    ),
    (lambda f: change_json(f / "config.json", quantization={"bits": 4}), "quantized .by another program"),
    (lambda f: change_json(f / "config.json", model_type="from_the_future"), "cannot be loaded: .*from_the_future"),
    (
        lambda f: (f / "1_Pooling" / "config.json").write_text('{"pooling_mode": "tenth", "embedding_dimension": 64}'),
        "cannot be loaded",
    ),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_broken_files_are_named_in_one_line(folder, tmp_path, change, message):
    change(folder)
    with pytest.raises((OSError, ValueError), match=message):
        encoder(folder).encode_documents(TEXTS)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    command = ["embed", str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), "--model", str(folder)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    [line] = [line for line in done.output.splitlines() if line.startswith("Error:")]
    assert "Traceback" not in done.output
    assert str(folder) in line


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-Embedding-0.6B"}')
    with pytest.raises(ValueError, match=r"adapter_config\.json is a PEFT adapter without its model: merge"):
        encoder(tmp_path)


def test_a_shard_that_is_not_there(folder):
    in_shards(folder)
    last = max(folder.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last.name} is missing, which model\.safetensors\.index\.json names"):
        encoder(folder).encode_documents(TEXTS)


def test_the_cost_needs_no_weights(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    shutil.rmtree(folder / "1_Pooling")
    (tmp_path / "text.txt").write_text("some words")
    found = estimate([tmp_path / "text.txt"], str(folder))
    assert found.tokens > 2
    assert found.local is None


def in_cache(model_folder, cache, *, reference=False):
    """Lay a model where the hub's library keeps what it fetched by a commit, without a branch's name."""
    repository = cache / "models--acme--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(model_folder, repository / "snapshots" / commit)
    if reference:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    return commit


@pytest.mark.parametrize("settings", [{"local_files_only": True}, {}])
def test_a_cache_without_a_branch(model_folder, tmp_path, monkeypatch, settings):
    from huggingface_hub import constants

    # As HF_HUB_OFFLINE=1 does: without it, the second case would wait for a network.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = in_cache(model_folder, tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"refs/main is missing.*as revision give one of {commit}"):
        encoder("acme/model", cache_folder=tmp_path, **settings).encode_documents(TEXTS)
    found = encoder("acme/model", cache_folder=tmp_path, revision=commit, **settings).encode_documents(TEXTS)
    assert found.shape == (len(TEXTS), 64)


def test_half_a_download_in_the_cache(model_folder, tmp_path):
    commit = in_cache(model_folder, tmp_path, reference=True)
    (tmp_path / "models--acme--model" / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"hf download acme/model --revision {commit}"):
        encoder("acme/model", cache_folder=tmp_path, local_files_only=True).encode_documents(TEXTS)


def test_what_sentence_transformers_saved_is_the_default(folder, reference, tmp_path):
    model = SentenceTransformer(str(folder), truncate_dim=40, device="cpu")
    model.max_seq_length = 20
    model.save_pretrained(str(tmp_path / "saved"))
    saved = encoder(tmp_path / "saved")
    assert (saved.dimensions, saved.max_tokens) == (40, 20)
    expected = model.encode_document(TEXTS, normalize_embeddings=True)
    assert cosines(saved.encode_documents(TEXTS), expected).min() > 0.9999
    assert saved.fingerprint.endswith(".d40.doc-none.max20")
    whole = encoder(tmp_path / "saved", dimensions=64, max_tokens=8192)
    assert cosines(whole.encode_documents(TEXTS), reference(TEXTS)).min() > 0.9999


def test_what_older_sentence_transformers_saved(folder):
    change_json(folder / "sentence_bert_config.json", max_seq_length=30, do_lower_case=False)
    assert encoder(folder).max_tokens == 30
    change_json(folder / "sentence_bert_config.json", max_seq_length=100_000)
    assert encoder(folder).max_tokens == 8192


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"rope_scaling": YARN}, 32768),
        ({"rope_scaling": YARN, "max_position_embeddings": 32768}, 32768),
        ({"rope_scaling": {**YARN, "factor": 16.0}, "max_position_embeddings": 131072}, 131072),
        ({"rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}}, 131072),
        ({"rope_parameters": {**YARN, "rope_theta": 1e4, "factor": 8}}, 65536),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 65536}, 65536),
        ({"max_position_embeddings": 40960}, 32768),
    ],
)
def test_a_folder_reads_what_its_config_says(folder, settings, tokens):
    change_json(folder / "config.json", **({"rope_parameters": None, "rope_theta": 1e4} | settings))
    assert encoder(folder).max_tokens == tokens


def test_a_scaled_folder_reads_more_than_its_tokenizer_had_before(folder):
    change_json(folder / "config.json", rope_parameters=None, rope_theta=1e4, rope_scaling=YARN)
    for length, tokens in ((8192, 32768), (10**30, 32768), (512, 512)):
        change_json(folder / "tokenizer_config.json", model_max_length=length)
        assert encoder(folder).max_tokens == tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_theta": 5e5}, "gives rope_theta as 500000.0 and as 10000.0"),
        ({"rope_scaling": YARN}, "gives rope_type as 'yarn' and as 'default'"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "depends on the longest text",
        ),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "cannot be loaded"),
    ],
)
def test_rotary_settings_that_cannot_be_right(folder, settings, message):
    change_json(folder / "config.json", **settings)
    with pytest.raises(ValueError, match=message):
        encoder(folder).encode_documents(TEXTS)


def test_the_fingerprint_is_of_the_files_that_make_the_vectors(folder):
    before = encoder(folder)
    vectors = before.encode_documents(TEXTS)
    (folder / "all_results.json").write_text('{"loss": 0.1}')
    (folder / "trainer_state.json").write_text("{}")
    (folder / "checkpoint-500").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-500" / "model.safetensors")
    assert encoder(folder).fingerprint == before.fingerprint
    assert np.array_equal(before.encode_documents(TEXTS), vectors)
    prints = {before.fingerprint}
    for name in ("tokenizer.json", "config.json", "1_Pooling/config.json", "modules.json"):
        (folder / name).write_text((folder / name).read_text() + "\n")
        prints.add(encoder(folder).fingerprint)
    change_tensors(folder, lambda tensors: {**tensors, "norm.weight": 2 * tensors["norm.weight"]})
    assert len(prints | {encoder(folder).fingerprint}) == 6


FORKED = """
import os, sys, torch
from qwen3_embed_integrations import Qwen3Encoder
torch.set_num_threads(int(sys.argv[2]))
encoder = Qwen3Encoder(sys.argv[1], device="cpu")
encoder.encode_documents(["before"])
encoder.close()
child = os.fork()
if child == 0:
    try:
        print(encoder.replaced(dimensions=32).encode_documents(["after"]).shape, flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("threads", "printed"), [("2", "forked after the model was loaded"), ("1", "(1, 32)")])
def test_a_fork_after_close_is_refused_too(folder, threads, printed):
    command = [sys.executable, "-c", FORKED, str(folder), threads]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert printed in done.stdout


def test_the_query_prompt_of_a_saved_model_is_the_models_own(folder, reference):
    # sentence-transformers writes them beside others of its own.
    found = encoder(folder).encode_queries(TEXTS)
    assert cosines(found, reference([as_query(text) for text in TEXTS])).min() > 0.99999
