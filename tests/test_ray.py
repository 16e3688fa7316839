"""Bulk embedding on Ray: the files of one process, whichever process dies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import numpy as np
import psutil
import pyarrow as pa
import pytest
import typer.main
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.bulk import embed_files
from qwen3_embed_integrations.cli import app
from tests.dying import SIGNALS, DyingEncoder
from tests.test_bulk import ROOT, files_of, read, rows_of, vectors_of, write

pytest.importorskip("ray", reason="the extra ray is not installed")

import ray

from qwen3_embed_integrations.ray import Qwen3Embedder, embed_dataset

TEXTS = [f"text {number}" for number in range(40)]


@pytest.fixture(scope="module")
def dying_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dying")


@pytest.fixture(scope="module", autouse=True)
def _ray(dying_folder):
    variables = {"DIES_AT": TEXTS[20], "DIES_IN": str(dying_folder), "DIES_WITH": SIGNALS["SIGKILL"]}
    variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    yield
    ray.shutdown()


def test_an_actor_is_killed_and_the_files_are_those_of_one_process(tmp_path, dying_folder):
    source = write(tmp_path / "rows.parquet", rows_of(TEXTS))
    settings = {"part_rows": 8, "show_progress": False}
    one = embed_files(source, tmp_path / "one", model="tiny", dtype="float32", **settings)
    many = embed_dataset(source, tmp_path / "many", encoder=DyingEncoder("tiny", dtype="float32"), **settings)
    assert (dying_folder / "died").exists()
    assert [file.name for file in files_of(tmp_path / "one")] == [file.name for file in files_of(tmp_path / "many")]
    assert (one.rows, one.tokens, one.embedded_parts) == (many.rows, many.tokens, many.embedded_parts)
    ours, theirs = read(tmp_path / "one"), read(tmp_path / "many")
    assert theirs.drop_columns("embedding").equals(ours.drop_columns("embedding"))
    np.testing.assert_allclose(vectors_of(theirs), vectors_of(ours), atol=1e-5)
    again = embed_dataset(source, tmp_path / "one", model="tiny", **settings)
    assert (again.rows, again.embedded_rows) == (40, 0)
    batch = ray.data.read_parquet(str(tmp_path / "many")).take_batch(40)
    assert np.stack(batch["embedding"]).shape == (40, 256)


def end_what_was_started_with(name, value):
    """End what outlives Ray's driver: its workers write for a moment more, its agents stay for minutes."""

    def inherited(process):
        with suppress(psutil.Error):
            return process.environ().get(name) == value
        return False

    started = [each for each in psutil.process_iter() if inherited(each)]
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not psutil.wait_procs(started, timeout=60)[1]


def test_the_driver_is_killed(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows_of(TEXTS))
    environment = {**os.environ, "DIES_AT": TEXTS[36], "DIES_IN": str(tmp_path), "DIES_WITH": SIGNALS["SIGKILL"]}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.dying", str(source), str(tmp_path / "out"), "ray"]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=180)
    assert done.returncode == -int(SIGNALS["SIGKILL"])
    end_what_was_started_with("DIES_IN", str(tmp_path))
    # What was begun on Ray goes on in one process.
    report = embed_files(source, tmp_path / "out", model="tiny", part_rows=8, show_progress=False)
    assert report.rows == 40
    assert report.embedded_rows < 40
    assert read(tmp_path / "out").column("text").to_pylist() == TEXTS
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--ray", "IN", "OUT"], "any"),
        (["IN", "OUT", "--ray"], "any"),
        (["IN", "OUT", "--ray", "--workers", "2"], "any"),
        (["--ray", "auto", "IN", "OUT"], "auto"),
        (["IN", "--ray", "head:6379", "OUT"], "head:6379"),
        (["IN", "OUT", "--ray=ray://head:10001"], "ray://head:10001"),
        (["IN", "OUT"], None),
    ],
)
def test_the_option_ray_has_an_address_or_none(arguments, address):
    context = typer.main.get_command(app).commands["embed"].make_context("embed", arguments)
    assert (context.params["ray"], context.params["source"], context.params["destination"]) == (address, "IN", "OUT")


def test_the_command_on_ray(tmp_path):
    source = write(tmp_path / "rows.csv", rows_of(TEXTS[:8]))
    arguments = ["embed", "--ray", str(source), str(tmp_path / "out"), "--model", "tiny", "--workers", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "8 rows in 1 files" in done.output
    assert read(tmp_path / "out").column("text").to_pylist() == TEXTS[:8]


def test_an_error_of_a_worker_is_the_users(tmp_path, model_folder):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    source = write(tmp_path / "rows.jsonl", rows_of(TEXTS[:3]))
    with pytest.raises(ValueError, match="the names are those of a PEFT model"):
        embed_dataset(source, tmp_path / "out", model=folder, show_progress=False)


def test_rows_that_are_refused_are_set_aside_on_ray_too(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows_of([*TEXTS[:3], "word " * 100]))
    encoder = Qwen3Encoder("tiny", max_tokens=32, long_text="error")
    with pytest.raises(ValueError, match=r"rows\.jsonl:4 has 102 tokens, more than max_tokens=32"):
        embed_dataset(source, tmp_path / "out", encoder=encoder, show_progress=False)
    report = embed_dataset(source, tmp_path / "out", encoder=encoder, skip_bad=True, show_progress=False)
    assert (report.rows, report.rejected_rows) == (3, 1)


def test_the_embedder_in_a_pipeline_of_ones_own():
    dataset = ray.data.from_items(rows_of(TEXTS[:6])).map_batches(
        Qwen3Embedder,
        fn_constructor_kwargs={"model": "tiny", "dimensions": 32, "dtype": "float32"},
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=4,
    )
    rows = sorted(dataset.take_all(), key=lambda row: row["id"])
    assert [row["text"] for row in rows] == TEXTS[:6]
    expected = Qwen3Encoder("tiny", dimensions=32, dtype="float32").encode_documents(TEXTS[:6])
    np.testing.assert_allclose(np.stack([row["embedding"] for row in rows]), expected, atol=1e-5)


def test_the_embedder_takes_every_batch_format():
    embedder = Qwen3Embedder(model="tiny", dtype="float32")
    expected = Qwen3Encoder("tiny", dtype="float32").encode_documents(TEXTS[:3])
    table = pa.Table.from_pylist(rows_of(TEXTS[:3]))
    arrays = embedder({"text": np.array(TEXTS[:3], dtype=object)})
    np.testing.assert_allclose(arrays["embedding"], expected, atol=1e-5)
    np.testing.assert_allclose(vectors_of(embedder(table)), expected, atol=1e-5)
    frame = embedder(table.to_pandas())
    np.testing.assert_allclose(np.stack(frame["embedding"]), expected, atol=1e-5)
    assert list(frame["id"]) == [0, 1, 2]


def test_the_embedder_refuses_wrong_columns():
    embedder = Qwen3Embedder("body", model="tiny")
    with pytest.raises(KeyError, match="no column 'body'; the batch has 'text'"):
        embedder({"text": np.array(["a"], dtype=object)})
    with pytest.raises(ValueError, match="a column 'embedding' already"):
        embedder(pa.table({"body": ["a"], "embedding": [1]}))
