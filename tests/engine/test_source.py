"""Finding a model's files, from a real server too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qwen3_embed_integrations import MODELS, Qwen3Encoder
from qwen3_embed_integrations.engine.source import ModelSource, locate

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_the_right_token"


def test_names_hub_ids_and_folders(tmp_path, monkeypatch):
    assert locate("4B") == "Qwen/Qwen3-Embedding-4B"
    assert locate("acme/model") == "acme/model"
    assert Path(locate("tiny"), "config.json").is_file()
    (tmp_path / "acme" / "model").mkdir(parents=True)
    (tmp_path / "acme" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert locate("acme/model") == locate(Path("acme/model")) == str(tmp_path / "acme" / "model")


@pytest.mark.parametrize("model", ["", "tinny", "a/b/c", "./absent", "../absent/model", Path("acme/absent")])
def test_what_is_neither(model):
    with pytest.raises(ValueError, match="unknown model"):
        locate(model)


def test_known_limits_need_no_files():
    assert ModelSource(MODELS["8B"].hub_id).limits() == (4096, 32768)


def test_the_context_is_at_most_that_of_the_models(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "max_position_embeddings": 40960}))
    assert ModelSource(str(tmp_path)).limits() == (8, 32768)


def test_a_config_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no hidden_size"):
        ModelSource(str(tmp_path)).limits()


def test_equal_sources_lead_to_the_same_files():
    assert ModelSource("a/b", token="x", local_files_only=True) == ModelSource("a/b")
    assert ModelSource("a/b", revision="v1") != ModelSource("a/b")
    assert "secret" not in repr(ModelSource("a/b", token="secret"))


@pytest.fixture
def hub(model_folder):
    """A hub with one private repository, `acme/private`, that has one revision, `v1`."""
    files = {path.relative_to(model_folder).as_posix(): path for path in model_folder.rglob("*") if path.is_file()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            asked.append(self.path)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "no access"})
            for prefix in ("/api/models/acme/private/revision/v1", f"/api/models/acme/private/revision/{COMMIT}"):
                if self.path.startswith(prefix):
                    siblings = [{"rfilename": name} for name in [*files, "pytorch_model.bin"]]
                    body = {"id": "acme/private", "sha": COMMIT, "siblings": siblings}
                    return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            if self.path.startswith(f"/api/models/acme/private/tree/{COMMIT}"):
                body = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0"}
                    for name, path in files.items()
                ]
                return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            for prefix in ("/acme/private/resolve/v1/", f"/acme/private/resolve/{COMMIT}/"):
                if self.path.startswith(prefix) and self.path.removeprefix(prefix) in files:
                    body = files[self.path.removeprefix(prefix)].read_bytes()
                    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}
                    return self.send(200, body, headers)
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def send(self, status, body, headers):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def run_against(endpoint, code, *arguments, **variables):
    """Run code in a process of its own, since the hub's client reads its address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    environment.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


LOAD = """
import json, sys
from qwen3_embed_integrations import Qwen3Encoder
folder, token = sys.argv[1:]
encoder = Qwen3Encoder("acme/private", revision="v1", token=token, cache_folder=folder, dtype="float32", device="cpu")
tokens = encoder.count_tokens(["over the network"])
vectors = encoder.encode_queries(["over the network"])
print(json.dumps([tokens, encoder.fingerprint, encoder.dimensions, vectors.tolist()]))
"""


def test_a_private_model_from_the_hub(hub, model_folder, tmp_path):
    endpoint, asked = hub
    done = run_against(endpoint, LOAD, tmp_path, TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    tokens, fingerprint, dimensions, vectors = json.loads(done.stdout.splitlines()[-1])
    local = Qwen3Encoder(model_folder, dtype="float32", device="cpu")
    assert tokens == local.count_tokens(["over the network"])
    assert dimensions == 64
    assert fingerprint == f"acme.private-{COMMIT[:12]}.d64.doc-none"
    np.testing.assert_allclose(vectors, local.encode_queries(["over the network"]), atol=1e-6)
    assert not any(path.endswith(".bin") for path in asked)
    asked.clear()
    pinned = LOAD.replace('revision="v1"', f'revision="{COMMIT}", local_files_only=True')
    assert run_against(endpoint, pinned, tmp_path, TOKEN).returncode == 0
    assert not asked


def test_fetching_draws_bars_where_progress_is_asked_for(hub, tmp_path):
    code = LOAD.replace('(["over the network"])\nprint', '(["over the network"], show_progress=True)\nprint')
    done = run_against(hub[0], code, tmp_path, TOKEN)
    assert done.returncode == 0, done.stderr
    assert "Fetching" in done.stderr


MISSING = """
import sys
from pathlib import Path
from qwen3_embed_integrations import Qwen3Encoder
for model in ("0.6B", "acme/absent"):
    encoder = Qwen3Encoder(model, cache_folder=sys.argv[1], local_files_only=sys.argv[2] == "local")
    calls = [
        lambda: encoder.encode_queries(["a"]),
        lambda: encoder.count_tokens(["a"]),
        lambda: encoder.split("a"),
        lambda: encoder.fingerprint,
        encoder.warm_up,
    ]
    if model == "acme/absent":
        calls += [lambda: encoder.dimensions, lambda: encoder.max_tokens]
    for call in calls:
        try:
            call()
        except FileNotFoundError as error:
            print(model, error)
"""


@pytest.mark.parametrize(
    ("how", "variables", "reason"),
    [
        ("local", {}, "local_files_only=True keeps it from being fetched"),
        ("anywhere", {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE keeps it from being fetched"),
        ("anywhere", {"HTTPS_PROXY": "refusing"}, "the proxy does not let it be fetched ("),
    ],
)
def test_what_is_missing_offline_is_told_with_the_cache_and_the_remedy(hub, tmp_path, how, variables, reason):
    # A server that knows no CONNECT is a proxy that refuses.
    variables = {name: hub[0] if value == "refusing" else value for name, value in variables.items()}
    done = run_against("https://huggingface.co", MISSING, tmp_path, how, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    for line in lines:
        name, _, words = line.partition(" ")
        location = "Qwen/Qwen3-Embedding-0.6B" if name == "0.6B" else name
        assert words.startswith(f"{location} (revision main) is not in the cache at {tmp_path}, and {reason}")
        assert words.endswith(
            f": fetch it with `hf download {location} --cache-dir {tmp_path}` where there is a network, or give a "
            "model's folder"
        )


def test_a_tokenizer_that_is_missing_offline_is_told_with_the_model(model_folder, tmp_path):
    snapshot = shutil.copytree(model_folder, tmp_path / "models--acme--part" / "snapshots" / COMMIT)
    (snapshot / "tokenizer.json").unlink()
    encoder = Qwen3Encoder("acme/part", revision=COMMIT, cache_folder=tmp_path, local_files_only=True)
    words = (
        rf"^the tokenizer\.json of acme/part \(revision {COMMIT}\) is not in the cache at {tmp_path}, and local"
        rf"_files_only.*`hf download acme/part --revision {COMMIT} --cache-dir {tmp_path}`"
    )
    for call in (encoder.encode_documents, encoder.count_tokens):
        with pytest.raises(FileNotFoundError, match=words):
            call(["a"])


def test_the_command_prints_one_line_for_a_model_that_is_missing_offline(tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    code = "from qwen3_embed_integrations.cli import app; app()"
    arguments = ["embed", "texts.txt", "vectors", "--model", "Qwen/Qwen3-Embedding-0.6B"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(
        f"Error: Qwen/Qwen3-Embedding-0.6B (revision main) is not in the cache at {tmp_path / 'hub'}"
    )


def test_a_wrong_token_is_an_error_that_does_not_show_it(hub, tmp_path):
    done = run_against(hub[0], LOAD, tmp_path, "hf_the_wrong_token")
    assert done.returncode != 0
    assert "acme/private" in done.stderr
    assert "hf_the_wrong_token" not in done.stderr + done.stdout
