"""The demonstration and the command."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from qwen3_embed_integrations import MODELS, Qwen3Encoder
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.demo import Entry, build, standard_library


@pytest.fixture(scope="module")
def index():
    return build(Qwen3Encoder("tiny", query_instruction="code_search", dtype="float32"))


def test_the_standard_library_is_read_without_being_imported():
    entries = {entry.name: entry for entry in standard_library()}
    assert len(entries) > 2000
    assert {"shutil.copytree", "csv.DictReader", "json.loads", "asyncio.runners.run"} <= set(entries)
    assert entries["shutil.copytree"].signature.startswith("(src, dst, symlinks=False")
    assert entries["shutil.copytree"].first_line.startswith("Recursively copy a directory tree")
    assert "f, fieldnames=None" in entries["csv.DictReader"].signature
    assert not any(name.startswith(("test.", "_", "idlelib.")) or "._" in name for name in entries)
    assert "antigravity" not in sys.modules


def test_other_sources_can_be_read(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(
        'async def go(*, x: int = 1) -> None:\n    """Go.\n\n    Far."""\n'
    )
    (tmp_path / "_private.py").write_text("def hidden(): ...")
    (tmp_path / "plain.py").write_text("class A:\n    def __init__(self, b, c=2): ...\nclass B: ...\ndef _no(): ...\n")
    assert standard_library(tmp_path) == [
        Entry("package.go", "(*, x: int=1)", "Go.\n\nFar."),
        Entry("plain.A", "(b, c=2)", ""),
        Entry("plain.B", "()", ""),
    ]
    assert standard_library(tmp_path)[0].first_line == "Go."
    assert standard_library(tmp_path)[1].first_line == "(b, c=2)"


def test_the_three_frameworks_find_the_same(index):
    assert list(index.searches) == ["LangChain", "LlamaIndex", "Haystack"]
    assert index.missing == {}
    assert index.tokens > 50_000
    for question in ("how do I read a csv file", "compress data with gzip"):
        found = [search(question) for search in index.searches.values()]
        assert all(len(hits) == 5 for hits in found)
        for hits in found[1:]:
            assert [hit.name for hit in hits] == [hit.name for hit in found[0]]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in found[0]], abs=1e-5)
    names = [hit.name for hit in index.searches["LangChain"]("how do I read a csv file")]
    assert any(name.startswith("csv.") for name in names)
    assert "shutil.copytree" in [hit.name for hit in index.searches["Haystack"]("copy a whole directory tree")]


def test_demo_prints_what_each_framework_found():
    done = CliRunner().invoke(app, ["demo", "how do I read a csv file"])
    assert done.exit_code == 0, done.output
    for expected in ("LangChain", "LlamaIndex", "Haystack", "tokens", "float"):
        assert expected in done.output
    assert len(re.findall(r"^0\.\d{4}  [\w.]+ +\S", done.output, re.MULTILINE)) == 15
    assert re.search(r"^0\.\d{4}  csv\.", done.output, re.MULTILINE)
    assert done.output.count("how do I read a csv file") == 3


def test_models_prints_facts_and_scores():
    done = CliRunner().invoke(app, ["models"])
    assert done.exit_code == 0
    for spec in MODELS.values():
        assert f"{spec.min_dimensions}-{spec.max_dimensions}" in done.output
        for score in spec.scores.values():
            assert f"{score:.2f}" in done.output


def test_an_unknown_model_is_an_error_of_the_command():
    done = CliRunner().invoke(app, ["demo", "x", "--model", "5B"])
    assert done.exit_code == 2
    assert "unknown model '5B'" in done.output


def test_the_version():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"qwen3-embed-integrations {version('qwen3-embed-integrations')}\n")
