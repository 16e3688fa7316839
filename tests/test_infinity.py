"""The remote encoder against a server that others wrote: infinity, with the bundled model, in its own environment.

infinity holds transformers below 5, hence the environment; it is made once, in the user's cache, and borrows torch.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qwen3_embed_integrations import Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.endpoint_check import check_endpoint
from qwen3_embed_integrations.models import TINY_FOLDER
from tests.conftest import cosines

PACKAGES = (["infinity-emb[server]==0.0.78", "transformers<5", "click<8.2"], ["--no-deps", "sentence-transformers<4"])
SECONDS = 100
TEXTS = [
    "Copy a directory tree.",
    "def f(x):\n    return x",
    "你好，世界",
    "two  spaces\tand\n\n\nempty lines",
    *(f"text number {number} " + "word " * (number % 17) + "." for number in range(60)),
]


def environment() -> Path:
    """The folder of the environment, made where it is not there yet; skips where that can't be done."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwen3-embed-integrations"
    folder = cache / f"infinity-0.0.78-{sys.implementation.cache_tag}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=SECONDS)
            for packages in PACKAGES:
                command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            pytest.skip(f"infinity could not be installed: {reason}")
        (folder / "ready").touch()
    inner = subprocess.run(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # Behind its own packages, so that only what it lacks comes from here.
    (Path(inner) / "outer.pth").write_text(f"{borrowed(folder / 'outer')}\n")
    return folder


def borrowed(folder: Path) -> Path:
    """Link the large packages that it needs, and theirs, and no others, which may need another numpy than it has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    waiting, seen = ["torch", "scikit-learn", "pillow"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(found.locate_file(top))
        requirements = map(Requirement, found.requires or [])
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder


@pytest.fixture(scope="module")
def url():
    folder = environment()
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
