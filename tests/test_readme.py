"""The README's code runs, and its words agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen3_embed_integrations import INSTRUCTIONS
from qwen3_embed_integrations.encoder import EncoderSettings

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_code_runs(block, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    if "how do I copy a folder?" in block:
        assert capsys.readouterr().out == "Copy a directory tree.\n"


def test_there_is_an_example_for_each_framework():
    assert len(BLOCKS) == 10


def test_settings_and_counts():
    settings = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert settings == list(EncoderSettings.__dataclass_fields__)[: len(settings)]
    assert len(settings) == 10
    assert f"{len(INSTRUCTIONS)} named task sentences" in README
