"""`verify`: what it says of sound models and of broken ones, and how much it holds at a time."""

import gc
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import Qwen3Model
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations import encoder as encoder_module
from qwen3_embed_integrations import verify as module
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.engine import engine
from qwen3_embed_integrations.engine.tokenization import Tokenization
from qwen3_embed_integrations.verify import MODEL_CARDS, verify
from tests.conftest import make_model

DTYPES = ("float32", "bfloat16")
# What the wider tolerance finds, the narrower one finds too: most faults are planted in bfloat16 only.


def failed(report):
    return {check.name for check in report.checks if check.status == "failed"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sound_model_passes(dtype):
    report = verify("tiny", dtype=dtype, device="cpu")
    assert report.is_ok, report
    assert [check.name for check in report.checks if check.status == "skipped"] == ["published similarities"]
    assert (report.dtype, report.device) == (dtype, "cpu")


def turn_rotary_base(model):
    exponents = torch.arange(0, model.config.head_dim, 2) / model.config.head_dim
    model.rotary_emb.inv_freq = 1 / 10_000.0**exponents


def test_another_rotary_base_is_found(monkeypatch):
    load = engine._load_modules

    def broken(*arguments):
        model = load(*arguments)
        turn_rotary_base(model[0].auto_model)
        return model

    monkeypatch.setattr(engine, "_load_modules", broken)
    report = verify("tiny", dtype="bfloat16", device="cpu")
    assert "plain transformers" in failed(report), report


def test_a_layer_of_zeros_is_found(monkeypatch):
    load = engine._load_modules

    def broken(*arguments):
        model = load(*arguments)
        with torch.no_grad():
            for parameter in model[0].auto_model.layers[1].parameters():
                parameter.zero_()
        return model

    monkeypatch.setattr(engine, "_load_modules", broken)
    report = verify("tiny", dtype="bfloat16", device="cpu")
    assert {"plain transformers", "a text that is cut keeps its end token"} <= failed(report), report


def test_the_mean_of_the_tokens_is_found(tmp_path):
    folder = make_model(tmp_path / "mean")
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    report = verify(folder, dtype="bfloat16", device="cpu")
    assert "plain transformers" in failed(report), report


def test_a_missing_prompt_is_found(monkeypatch):
    monkeypatch.setattr("qwen3_embed_integrations.encoder.query_prompt", lambda instruction: "")
    assert failed(verify("tiny", dtype="float32", device="cpu")) == {"queries are their prompt and the text"}


def test_a_cut_that_loses_the_end_token_is_found(monkeypatch):
    monkeypatch.setattr(Tokenization, "cut", lambda self, ids, max_tokens: ids[:max_tokens])
    assert failed(verify("tiny", dtype="float32", device="cpu")) == {"a text that is cut keeps its end token"}


def test_broken_int8_is_found(monkeypatch):
    load = engine._load_modules

    def broken(settings, folder):
        model = load(settings, folder)
        if settings.quantization is not None:
            with torch.no_grad():
                model[0].auto_model.layers[1].mlp.down_proj.weight.mul_(-1)
        return model

    monkeypatch.setattr(engine, "_load_modules", broken)
    assert failed(verify("tiny", dtype="float32", device="cpu")) == {"int8"}


def test_vectors_that_are_cut_but_not_renormalised_are_found(monkeypatch):
    truncate = encoder_module.truncate
    monkeypatch.setattr(encoder_module, "truncate", lambda states, size: truncate(states, states.shape[1])[:, :size])
    assert failed(verify("tiny", dtype="float32", device="cpu")) == {"fewer dimensions"}


def test_a_missing_end_token_is_refused(tmp_path):
    folder = make_model(tmp_path / "endless")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = CliRunner().invoke(app, ["verify", "--model", str(folder)])
    assert done.exit_code == 2
    assert "does not append an end token" in done.output


@pytest.mark.parametrize(("shift", "ok"), [(0.0, True), (0.015, False)])
def test_published_similarities_are_compared(monkeypatch, shift, ok):
    encoder = Qwen3Encoder("tiny", dtype="float32", device="cpu")
    found = encoder.encode_queries(MODEL_CARDS.queries) @ encoder.encode_documents(MODEL_CARDS.documents).T
    published = module.PublishedSimilarities(
        MODEL_CARDS.queries, MODEL_CARDS.documents, {"tiny": tuple(map(tuple, found + shift))}, "this test"
    )
    monkeypatch.setattr(module, "MODEL_CARDS", published)
    report = verify("tiny", dtype="float32", device="cpu")
    assert failed(report) == (set() if ok else {"published similarities"})


def test_one_model_is_in_memory_at_a_time(monkeypatch):
    alive = []
    made = Qwen3Model.__init__

    def counted(self, *arguments, **settings):
        gc.collect()
        alive.append(sum(isinstance(item, Qwen3Model) and item is not self for item in gc.get_objects()))
        made(self, *arguments, **settings)

    gc.collect()
    before = sum(isinstance(item, Qwen3Model) for item in gc.get_objects())
    monkeypatch.setattr(Qwen3Model, "__init__", counted)
    verify("tiny", dtype="float32", device="cpu")
    # Ours, int8, plain transformers; and before the first two, one without memory that tells which tensors there are.
    assert alive == [before] * 5


def test_the_command(tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["verify", "--model", "tiny", "--json", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    assert "not published" in done.output
    assert json.loads((tmp_path / "report.json").read_text())["is_ok"] is True
    monkeypatch.setattr(module, "_INT8", 0.0)
    done = CliRunner().invoke(app, ["verify", "--model", "tiny"])
    assert done.exit_code == 1
    assert "failed" in done.output


def test_a_model_that_cannot_be_fetched_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("Error: ")


def test_it_needs_none_of_the_extras():
    code = (
        "import sys\n"
        "for name in ('faiss', 'mteb', 'matplotlib', 'langchain_core'): sys.modules[name] = None\n"
        "from qwen3_embed_integrations.cli import app\n"
        "app(['verify', '--model', 'tiny', '--device', 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nan_is_no_pass():
    run = module._Run()
    with run.timed("nan"):
        run.compare(np.full((1, 2), np.nan, dtype=np.float32), np.zeros((1, 2), dtype=np.float32), 1.0)
    assert run.checks[0].status == "failed"


def test_what_a_folder_was_saved_with_does_not_go_before(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    saved = {"prompts": {"query": "q: ", "document": "d: "}, "truncate_dim": 40}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20}))
    assert verify(folder, dtype="float32", device="cpu").is_ok
