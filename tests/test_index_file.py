"""Indexes on disk: the fingerprint beside them, damage, and crashes in the middle of saving."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import faiss
import numpy as np
import pytest

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.index_file import (
    DamagedIndexError,
    FingerprintError,
    check_index,
    load_index,
    save_index,
)
from qwen3_embed_integrations.matryoshka import two_stage_index

TEXTS = ["Copy a directory tree.", "Compute a square root.", "Parse the command line."]

# Saves an index of one vector and one of a hundred in turn, for ever.
SAVING = """
import sys
import numpy as np
from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.index_file import save_index
from qwen3_embed_integrations.matryoshka import two_stage_index

encoder = Qwen3Encoder("tiny")
indexes = []
for count in (1, 100):
    index = two_stage_index(256)
    index.add(np.eye(256, dtype=np.float32)[:count])
    indexes.append(index)
while True:
    for index in indexes:
        save_index(index, sys.argv[1], encoder)
        print(index.ntotal, flush=True)
"""


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dtype="float32")


@pytest.fixture
def saved(encoder, tmp_path):
    index = two_stage_index(encoder.dimensions)
    index.add(encoder.encode_documents(TEXTS))
    path = tmp_path / "folder" / "index.faiss"
    save_index(index, path, encoder)
    return path


def test_saved_and_loaded(saved, encoder):
    query = encoder.encode_queries(["how do I copy a folder?"])
    scores, rows = load_index(saved, encoder).search(query, 3)
    expected = (query @ encoder.encode_documents(TEXTS).T)[0]
    assert rows[0].tolist() == np.argsort(-expected).tolist()
    np.testing.assert_allclose(scores[0], np.sort(expected)[::-1], atol=1e-3)
    assert check_index(saved, encoder).fingerprint == encoder.fingerprint
    assert faiss.read_index(str(saved)).ntotal == 3
    assert sorted(path.name for path in saved.parent.iterdir()) == ["index.faiss", "index.faiss.fingerprint.json"]


@pytest.mark.parametrize(
    "settings", [{"dimensions": 64}, {"document_instruction": "web_search"}, {"max_tokens": 512}], ids=str
)
def test_another_encoder_is_refused_and_both_are_named(saved, encoder, settings):
    other = Qwen3Encoder("tiny", **settings)
    with pytest.raises(FingerprintError) as caught:
        load_index(saved, other)
    assert encoder.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_another_model_is_refused(saved, model_folder):
    with pytest.raises(FingerprintError):
        load_index(saved, Qwen3Encoder(model_folder))


def test_the_query_instruction_does_not_matter(saved):
    assert load_index(saved, Qwen3Encoder("tiny", query_instruction="code_search")).ntotal == 3


def test_an_index_of_other_dimensions_is_not_saved(encoder, tmp_path):
    with pytest.raises(ValueError, match="the index has 64 dimensions, and the encoder's vectors 256"):
        save_index(two_stage_index(64, 32), tmp_path / "index.faiss", encoder)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused(saved, encoder):
    content = saved.read_bytes()
    for damaged in (content[:-1], b"", content[:100] + b"x" + content[101:]):
        saved.write_bytes(damaged)
        with pytest.raises(DamagedIndexError, match=r"index\.faiss' is damaged"):
            load_index(saved, encoder)


@pytest.mark.parametrize("notes", ["", "{}", '{"files": [{"sha256": 1}]}', "[]"])
def test_damaged_notes_are_refused_and_written_over(saved, encoder, notes):
    path = saved.with_name("index.faiss.fingerprint.json")
    path.write_text(notes)
    with pytest.raises(DamagedIndexError, match="fingerprint"):
        load_index(saved, encoder)
    save_index(two_stage_index(256), saved, encoder)
    assert load_index(saved, encoder).ntotal == 0


def test_a_file_without_notes_and_no_file(saved, encoder, tmp_path):
    saved.with_name("index.faiss.fingerprint.json").unlink()
    with pytest.raises(DamagedIndexError, match="not saved with a fingerprint"):
        load_index(saved, encoder)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_index(tmp_path / "nothing.faiss", encoder)


def test_a_full_disk_leaves_the_old_index(saved, encoder):
    big = two_stage_index(256)
    big.add(np.random.default_rng(0).normal(size=(500, 256)).astype(np.float32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writing beyond the limit fails as on a full disk; Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RuntimeError):
            save_index(big, saved, encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_index(saved, encoder).ntotal == 3
    assert len(list(saved.parent.iterdir())) == 2


def test_a_process_that_is_killed_while_saving_leaves_a_whole_index(encoder, tmp_path):
    path = tmp_path / "index.faiss"
    for lines in range(2, 12):
        command = [sys.executable, "-c", SAVING, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(lines):
                assert process.stdout.readline()
            process.kill()
        assert load_index(path, encoder).ntotal in (1, 100)


def test_every_moment_of_a_save_is_whole(saved, encoder):
    old, new = saved.read_bytes(), two_stage_index(256)
    notes = saved.with_name("index.faiss.fingerprint.json")
    old_notes = json.loads(notes.read_text())["files"]
    save_index(new, saved, encoder)
    new_notes = json.loads(notes.read_text())["files"]
    # Between the two writes of the notes, the old file and the new are both known.
    notes.write_text(json.dumps({"files": [*new_notes, *old_notes]}))
    assert load_index(saved, encoder).ntotal == 0
    saved.write_bytes(old)
    assert load_index(saved, encoder).ntotal == 3
