"""The remote encoder against a server that others wrote: infinity, with the bundled model, in its own environment.

infinity holds transformers below 5, hence the environment.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading

import numpy as np
import pytest

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.endpoint_check import check_endpoint
from qwen3_embed_integrations.models import TINY_FOLDER
from tests.conftest import cosines
from tests.environments import SECONDS, environment

PACKAGES = (["infinity-emb[server]==0.0.78", "transformers<5", "click<8.2"], ["--no-deps", "sentence-transformers<4"])
TEXTS = [
    "Copy a directory tree.",
    "def f(x):\n    return x",
    "你好，世界",
    "two  spaces\tand\n\n\nempty lines",
    *(f"text number {number} " + "word " * (number % 17) + "." for number in range(60)),
]


@pytest.fixture(scope="module")
def url():
    folder = environment("infinity-0.0.78", *PACKAGES)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--engine", "torch", "--device", "cpu", "--no-bettertransformer", "--no-model-warmup"]
    command = [
        folder / "bin" / "infinity_emb",
        "v2",
        "--model-id",
        TINY_FOLDER,
        "--served-model-name",
        "tiny",
        *options,
    ]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "OMP_NUM_THREADS": "1",
        # Set by a test run in parallel, it would put this environment's packages before the other's.
        "PYTHONPATH": "",
    }
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **offline},
    )
    deadline = threading.Timer(2 * SECONDS, process.kill)
    deadline.start()
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Uvicorn running on" in line:
                break
        else:
            pytest.fail("infinity did not start:\n" + "".join(lines[-30:]))
        # So that it never waits for someone to read what it logs.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        yield f"http://127.0.0.1:{port}"
    finally:
        deadline.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize("settings", [{}, {"dimensions": 64}, {"dimensions": 64, "send_dimensions": True}])
async def test_vectors_equal_the_local_ones(url, settings):
    dimensions = settings.get("dimensions")
    local = Qwen3Encoder("tiny", dimensions=dimensions, dtype="float32", device="cpu")
    with RemoteEncoder(url, model="tiny", batch_size=9, **settings) as encoder:
        assert encoder.fingerprint == local.fingerprint
        for found, expected in (
            (encoder.encode_documents(TEXTS), local.encode_documents(TEXTS)),
            (encoder.encode_queries(TEXTS), local.encode_queries(TEXTS)),
            (await encoder.aencode_queries(TEXTS[:3]), local.encode_queries(TEXTS[:3])),
        ):
            assert found.shape == expected.shape
            assert cosines(found, expected).min() >= 0.99999
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_the_check_finds_the_models_vectors(url):
    # What infinity does with white space at the ends and with dimensions is its own affair.
    its_own = {"newlines changed", "dimensions refused", "dimensions cut without normalising"}
    compared = check_endpoint(url, model="tiny", max_tokens=600)
    assert set(compared.faults) <= its_own
    assert sorted(compared.cosines)[len(compared.cosines) // 2] > 0.999
    alone = check_endpoint(url, model="no-weights", served_model_name="tiny", max_tokens=600)
    assert set(alone.faults) <= its_own
