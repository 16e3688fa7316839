"""What an import brings in, and what a missing extra says."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata, requires

import pytest

import qwen3_embed_integrations

CORE = {"torch", "transformers", "sentence_transformers"}
HEAVY = {
    *CORE,
    "langchain_core",
    "langchain_text_splitters",
    "llama_index",
    "haystack",
    "faiss",
    "onnxruntime",
    "matplotlib",
    "mteb",
    "openai",
    "ray",
}


def modules_after(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return HEAVY & set(done.stdout.split())


def test_the_package_imports_neither_torch_nor_a_framework():
    assert modules_after("import qwen3_embed_integrations") == set()
    assert modules_after("from qwen3_embed_integrations import *") == set()
    assert modules_after("from qwen3_embed_integrations import Qwen3Encoder; Qwen3Encoder('tiny')") == set()
    assert modules_after("import qwen3_embed_integrations.bench.chart") == set()
    assert modules_after("import qwen3_embed_integrations.cost") == set()
    remote = "from qwen3_embed_integrations import RemoteEncoder; RemoteEncoder('http://host/v1', model='tiny')"
    assert modules_after(remote) == set()
    assert modules_after("from qwen3_embed_integrations import two_stage_index") == set()
    assert modules_after("import qwen3_embed_integrations.quality") == set()
    assert modules_after("import qwen3_embed_integrations.bulk") == set()


@pytest.mark.parametrize(
    ("adapter", "framework"),
    [
        ("langchain", {"langchain_core", "langchain_text_splitters"}),
        ("llama_index", {"llama_index"}),
        ("haystack", {"haystack"}),
        ("langchain_store", {"langchain_core"}),
        ("evaluation", {"mteb"}),
    ],
)
def test_an_adapter_imports_its_own_framework_only(adapter, framework):
    assert modules_after(f"import qwen3_embed_integrations.{adapter}") - CORE == framework


@pytest.mark.parametrize(
    ("adapter", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("langchain", "langchain_text_splitters", "langchain"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("haystack", "haystack", "haystack"),
        ("langchain_store", "langchain_core", "langchain,faiss"),
        ("evaluation", "mteb", "eval"),
        ("ray", "ray", "ray"),
    ],
)
def test_a_missing_extra_names_the_pip_command(adapter, framework, extra):
    code = f"import sys; sys.modules[{framework!r}] = None; import qwen3_embed_integrations.{adapter}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert "ImportError: the " in done.stderr
    assert f"pip install 'qwen3-embed-integrations[{extra}]'" in done.stderr
    assert set(extra.split(",")) <= set(metadata("qwen3-embed-integrations").get_all("Provides-Extra"))


def test_an_index_without_faiss_names_the_pip_command():
    code = "import sys; sys.modules['faiss'] = None; from qwen3_embed_integrations import two_stage_index"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; two_stage_index(256)"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "ImportError: searching needs FAISS: pip install 'qwen3-embed-integrations[faiss]'" in done.stderr


def test_a_missing_client_is_missed_only_by_the_remote_encoder():
    code = "import sys; sys.modules['openai'] = None; from qwen3_embed_integrations import *; RemoteEncoder('http://h')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "ImportError: RemoteEncoder needs openai: pip install 'qwen3-embed-integrations[remote]'" in done.stderr


def test_the_extra_all_has_the_frameworks_and_nothing_heavy():
    lines = requires("qwen3-embed-integrations")
    by_extra = {
        extra: {re.match(r"[\w-]+", line)[0] for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)}
        for extra in ("langchain", "llama-index", "haystack", "remote", "faiss", "bulk", "eval", "all")
    }
    assert by_extra["langchain"] == {"langchain-core", "langchain-text-splitters"}
    assert by_extra["llama-index"] == {"llama-index-core"}
    assert by_extra["haystack"] == {"haystack-ai"}
    assert by_extra["remote"] == {"openai"}
    assert by_extra["faiss"] == {"faiss-cpu"}
    assert by_extra["bulk"] == {"pyarrow"}
    # MTEB, with the libraries that load its data sets, is for those who evaluate.
    assert by_extra.pop("eval") == {"mteb"}
    assert by_extra["all"] == set.union(*(names for extra, names in by_extra.items() if extra != "all"))


def test_the_extra_bench_has_what_each_peer_needs():
    lines = requires("qwen3-embed-integrations")
    names = {re.match(r"[\w-]+", line)[0] for line in lines if re.search(r"extra == ['\"]bench['\"]", line)}
    assert names == {
        "langchain-huggingface",
        "llama-index-embeddings-huggingface",
        "matplotlib",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "sentence-transformers-haystack",
    }


def test_every_public_name_is_there():
    for name in qwen3_embed_integrations.__all__:
        assert getattr(qwen3_embed_integrations, name) is not None
    assert set(qwen3_embed_integrations.__all__) <= set(dir(qwen3_embed_integrations))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = qwen3_embed_integrations.nothing
    assert metadata("qwen3-embed-integrations")["Version"] == qwen3_embed_integrations.__version__
