"""The command that measures: what it writes, not how fast anything is."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import numpy as np
import pytest
from typer.testing import CliRunner

from qwen3_embed_integrations import MODELS, Qwen3Encoder
from qwen3_embed_integrations.bench.engines import PEER_DTYPES, PEERS, make_peer
from qwen3_embed_integrations.bench.measure import Measurement, linear_weights, make_cases, run
from qwen3_embed_integrations.bench.random_model import make
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.models import TINY_FOLDER

CASES = {
    "1 query": 1,
    "32 queries": 32,
    "24 documents": 24,
    "32 queries from 32 threads": 32,
    "40 short documents": 40,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One small run of the command: what it printed, its JSON and its PNG."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("bench")
    arguments = ["--shape", "tiny", "--rounds", "1", "--short-documents", "40", "--peers", "sentence-transformers"]
    files = ["--folder", str(folder), "--json", str(folder / "bench.json"), "--png", str(folder / "bench.png")]
    done = CliRunner().invoke(app, ["bench", *arguments, *files], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    return done.output, json.loads((folder / "bench.json").read_text()), (folder / "bench.png").read_bytes()


def test_json_has_every_engine_on_every_case(written):
    _, report, _ = written
    assert {name: case["texts"] for name, case in report["cases"].items()} == CASES
    for name, count in CASES.items():
        found = [item for item in report["measurements"] if item["case"] == name]
        peer = [item for item in found if item["engine"] == "sentence-transformers"]
        ours = [item for item in found if item["engine"].startswith("this package, ")]
        assert len(ours) == 2
        assert ours[1]["dtype"] == "int8"
        assert [item["batch_size"] for item in ours] == [None, None]
        sizes = [] if "threads" in name else [1] if count == 1 else [1, 8, 32]
        assert [item["batch_size"] for item in peer] == sizes
        assert len(found) == len(ours) + len(peer)
        assert {item["vectors"] for item in found} == {count}


def test_numbers_are_sound(written):
    _, report, _ = written
    keys = set(Measurement.__dataclass_fields__)
    for item in report["measurements"]:
        assert set(item) == keys
        assert len(item["rounds"]) == 1
        assert min(item["rounds"]) > 0
        assert item["seconds"] == item["rounds"][0]
        assert (item["of_limit"] is None) == ("quer" in item["case"])
        assert item["of_limit"] is None or item["of_limit"] > 0
        assert item["cosine"] == pytest.approx(1, abs=0.02)
    assert {"float32", "bfloat16", "int8"} <= set(report["limits"])
    assert min(report["limits"].values()) > 0
    assert report["packages"]["torch"]
    assert report["machine"]["threads"] >= 1
    assert report["machine"]["processor"]
    for case, ratios in report["ratios"].items():
        assert len(ratios) == 2
        for name, peers in ratios.items():
            assert set(peers) == (set() if "threads" in case else {"sentence-transformers"})
            times = defaultdict(list)
            for item in report["measurements"]:
                if item["case"] == case:
                    times[item["engine"]].append(item["seconds"])
            for peer, ratio in peers.items():
                assert ratio == pytest.approx(min(times[peer]) / min(times[name]))


def test_table_and_chart(written):
    printed, _, png = written
    for expected in (*CASES, "sentence-transformers", "this package, int8", "GFLOP/s"):
        assert expected in printed
    assert png.startswith(b"\x89PNG\r\n\x1a\n")


def test_peers_compute_in_the_type_that_is_asked_for(tmp_path):
    texts = make_cases(0)[2].texts
    exact = Qwen3Encoder("tiny", dtype="float32").encode_documents(texts)
    farthest = {}
    for dtype in PEER_DTYPES:
        engine = make_peer("sentence-transformers", TINY_FOLDER, "", dtype, "cpu", tmp_path)
        assert engine.dtype == dtype
        farthest[dtype] = (engine.encode(texts, "", 8) * exact).sum(axis=1).min()
    assert farthest["bfloat16"] < 0.9999 < 0.999999 < farthest["float32"]


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert not PEERS["onnxruntime"].is_installed
    arguments = ["--shape", "tiny", "--rounds", "1", "--short-documents", "0", "--peers", "onnxruntime"]
    done = CliRunner().invoke(app, ["bench", *arguments, "--folder", str(tmp_path)], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    assert "onnxruntime is not installed: pip install 'qwen3-embed-integrations[bench]'" in done.output


def test_a_chart_without_matplotlib_names_the_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(app, ["bench", "--png", str(tmp_path / "x.png")], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "pip install 'qwen3-embed-integrations[bench]'" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "7B"], "must be one of 0.6B, 4B, tiny"),
        (["--peers", "nobody"], "unknown peer 'nobody'"),
        (["--peer-dtype", "int8"], "peer_dtype must be one of bfloat16, float32, got 'int8'"),
        (["--device", "mps"], "device must be one of cpu, cuda, got 'mps'"),
        (["--device", "cuda", "--peers", "onnxruntime"], "'onnxruntime' is not measured on 'cuda'"),
        (["--json", "/nowhere/bench.json"], "there is no folder /nowhere"),
    ],
)
def test_wrong_options_are_errors_of_the_command(arguments, message):
    done = CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.output


def test_texts_are_the_same_every_time_and_all_different():
    cases = make_cases(10_000)
    assert cases == make_cases(10_000)
    assert [len(case.texts) for case in cases] == [1, 32, 24, 32, 10_000]
    for case in cases:
        assert len(set(case.texts)) == len(case.texts)
        assert bool(case.prompt) == ("quer" in case.name)


def test_linear_weights_are_those_of_the_layers():
    from transformers import Qwen3Config, Qwen3Model

    spec = MODELS["tiny"]
    config = Qwen3Config(
        vocab_size=8,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.query_heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )
    matrices = [weight.numel() for weight in Qwen3Model(config).layers.parameters() if weight.ndim == 2]
    assert linear_weights(spec) == sum(matrices)


def test_a_folder_with_another_shape_is_refused(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 1024, "num_hidden_layers": 28}))
    assert make(tmp_path, "0.6B") == tmp_path
    with pytest.raises(ValueError, match="has a model of another shape than 4B"):
        run("4B", folder=tmp_path, peers=[])


def test_onnxruntime_computes_the_same_vectors(tmp_path):
    for module in PEERS["onnxruntime"].modules:
        pytest.importorskip(module)
    model = make(tmp_path, "tiny")
    peer = make_peer("onnxruntime", model, "", "float32", "cpu", tmp_path)
    reference = make_peer("sentence-transformers", model, "", "float32", "cpu", tmp_path)
    texts = make_cases(0)[2].texts[:5]
    for size in (1, 2, 32):
        found, expected = (np.asarray(engine.encode(texts, "", size), dtype=np.float64) for engine in (peer, reference))
        assert found.shape == expected.shape
        assert (found * expected).sum(axis=1) == pytest.approx(np.ones(5), abs=0.03)
