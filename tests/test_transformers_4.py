"""The oldest transformers that the metadata allow, in an environment of its own, read what transformers 5 writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, Qwen3Config

from tests.conftest import as_query, cosines
from tests.environments import SECONDS, environment

PACKAGES = (["transformers==4.56.*", "numpy"], ["--no-deps", "sentence-transformers==5.7.*"])
TEXTS = ["how do I copy a folder?", "def area(radius):\n    return 3.14159 * radius ** 2", "word " * 300]

THETA = 1_000_000.0
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LINEAR = {"rope_type": "linear", "factor": 2.0}

# As transformers 5 writes it, and as transformers 4 does; what both must compute.
WRITTEN = {
    "five": ({"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}, {}),
    "four": ({"rope_theta": THETA}, {}),
    "both": ({"rope_theta": THETA, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}}, {}),
    "five-yarn": ({"rope_parameters": {**YARN, "rope_theta": THETA}}, YARN),
    "four-yarn": ({"rope_theta": THETA, "rope_scaling": YARN}, YARN),
    "old-yarn": ({"rope_theta": THETA, "rope_scaling": {**YARN, "type": "yarn"}}, YARN),
    "five-linear": ({"rope_parameters": {**LINEAR, "rope_theta": THETA}}, LINEAR),
    "four-linear": ({"rope_theta": THETA, "rope_scaling": LINEAR}, LINEAR),
    "two-bases": ({"rope_theta": 10_000.0, "rope_parameters": {"rope_type": "default", "rope_theta": THETA}}, None),
    "two-scalings": ({"rope_scaling": YARN, "rope_parameters": {**LINEAR, "rope_theta": THETA}}, None),
}

EMBED = """
import json, sys
import transformers
from qwen3_embed_integrations import Qwen3Encoder
found = {"transformers": transformers.__version__}
for folder in sys.argv[2:]:
    try:
        encoder = Qwen3Encoder(folder, dtype="float32", device="cpu")
        found[folder] = encoder.encode_queries(json.loads(sys.argv[1])).tolist()
    except ValueError as error:
        found[folder] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folders(model_folder, tmp_path_factory):
    """The random model with each of the configs."""
    parent = tmp_path_factory.mktemp("written")
    config = json.loads((model_folder / "config.json").read_text())
    for name in ("rope_theta", "rope_parameters", "rope_scaling"):
        config.pop(name, None)
    for name, (rotary, _) in WRITTEN.items():
        shutil.copytree(model_folder, parent / name)
        (parent / name / "config.json").write_text(json.dumps({**config, **rotary}))
    return parent


@pytest.fixture(scope="module")
def expected(model_folder):
    """Plain transformers, told the rotary settings by its own class."""

    def embed(scaling):
        plain = Qwen3Config.from_pretrained(model_folder)
        plain.rope_parameters = {"rope_type": "default", **scaling, "rope_theta": THETA}
        model = AutoModel.from_pretrained(model_folder, config=plain, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        vectors = []
        with torch.inference_mode():
            for text in TEXTS:
                hidden = model(**tokenizer(as_query(text), return_tensors="pt")).last_hidden_state[0, -1]
                vectors.append(torch.nn.functional.normalize(hidden, dim=-1).numpy())
        return np.stack(vectors)

    return embed


@pytest.fixture(scope="module", params=["4.56", "5"])
def found(request, folders):
    """What this package computes with each release: vectors, or its refusal, by folder."""
    python, version = sys.executable, request.param
    if version == "4.56":
        python = environment("transformers-4.56", *PACKAGES) / "bin" / "python"
    settings = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", EMBED, json.dumps(TEXTS), *(str(folders / name) for name in WRITTEN)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **settings},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["transformers"].startswith(f"{version}.")
    return result


@pytest.mark.parametrize("name", WRITTEN)
def test_every_release_rotates_as_the_file_says_or_refuses(found, folders, expected, name):
    vectors, scaling = found[str(folders / name)], WRITTEN[name][1]
    if scaling is None:
        assert "leave the right one in rope_theta, rope_scaling and rope_parameters" in vectors
    else:
        assert cosines(vectors, expected(scaling)).min() > 0.99999
