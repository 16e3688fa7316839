"""Finding a model's files, from a real server too."""

from __future__ import annotations

import hashlib
import json
import os
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


def run_against(endpoint, code, *arguments):
    """Run code in a process of its own, since the hub's client reads its address when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
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
    assert done.returncode == 0, done.stderr
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


def test_a_wrong_token_is_an_error_that_does_not_show_it(hub, tmp_path):
    done = run_against(hub[0], LOAD, tmp_path, "hf_the_wrong_token")
    assert done.returncode != 0
    assert "acme/private" in done.stderr
    assert "hf_the_wrong_token" not in done.stderr + done.stdout
