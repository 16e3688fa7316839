"""Files in, Parquet files with vectors out: nothing lost, nothing twice, whatever happens in between."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.bulk import embed_files
from qwen3_embed_integrations.bulk import source as bulk_source
from qwen3_embed_integrations.cli import app
from tests.dying import SIGNALS
from tests.misbehaving_server import Model, serving

ROOT = Path(__file__).parents[1]
TEXTS = [
    "Copy a directory tree.",
    "",
    "  blank at both ends \n",
    'quotes " and, commas',
    "line one\nline two\r\nline three",
    "nul \x00 inside",
    "non-ASCII: żółć 漢字 🙂",
    "a word " * 30,
    "<|endoftext|>",
    "same text",
    "same text",
]


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dimensions=64, dtype="float32")


def rows_of(texts):
    return [{"id": place, "text": text, "weight": place / 2} for place, text in enumerate(texts)]


def write(path, rows, **options):
    """Write rows in the format that the path ends in."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, **options)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def files_of(folder):
    return sorted(folder.glob("*.parquet"))


def read(folder):
    """Read the vectors as a user would: all files by name."""
    return pa.concat_tables([pq.read_table(file) for file in files_of(folder)], promote_options="none")


def vectors_of(table, column="embedding"):
    return np.stack(table.column(column).to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
@pytest.mark.parametrize("part_rows", [1, 4, 4096])
def test_every_format_gives_all_columns_and_the_encoders_vectors(tmp_path, encoder, suffix, part_rows):
    source = write(tmp_path / f"rows{suffix}", rows_of(TEXTS))
    report = embed_files(source, tmp_path / "out", encoder=encoder, part_rows=part_rows, show_progress=False)
    table = read(tmp_path / "out")
    assert table.drop_columns("embedding").to_pylist() == rows_of(TEXTS)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    np.testing.assert_allclose(vectors_of(table), encoder.encode_documents(TEXTS), atol=1e-5)
    assert (report.rows, report.embedded_rows, report.rejected_rows) == (len(TEXTS), len(TEXTS), 0)
    assert report.parts == report.embedded_parts == len(files_of(tmp_path / "out")) == -(-len(TEXTS) // part_rows)
    assert report.tokens == sum(encoder.count_tokens(TEXTS))
    for file in files_of(tmp_path / "out"):
        note = json.loads(pq.read_schema(file).metadata[b"qwen3_embed_integrations"])
        assert note["fingerprint"] == encoder.fingerprint
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f.name for f in files_of(tmp_path / "out")]


def test_a_part_ends_after_so_many_characters(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr(bulk_source, "PART_CHARACTERS", 100)
    for suffix in (".parquet", ".jsonl", ".csv"):
        out = tmp_path / suffix[1:]
        embed_files(write(tmp_path / f"rows{suffix}", rows_of(["x" * 60] * 5)), out, encoder=encoder)
        assert [pq.read_metadata(file).num_rows for file in files_of(out)] == [2, 2, 1]


def test_parquet_files_of_any_layout(tmp_path, encoder):
    texts = [f"text {number}" for number in range(50)]
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    for number, kind in enumerate(kinds):
        table = pa.table({"text": pa.array(texts).cast(kind), "at": pa.array(range(50), pa.int16())})
        pq.write_table(table, tmp_path / "rows.parquet", row_group_size=(7, 50, 20)[number])
        embed_files(tmp_path / "rows.parquet", tmp_path / f"out{number}", encoder=encoder, part_rows=6)
        found = read(tmp_path / f"out{number}")
        assert found.column("text").to_pylist() == texts
        assert found.schema.field("at").type == pa.int16()
        np.testing.assert_allclose(vectors_of(found), encoder.encode_documents(texts), atol=1e-5)


def test_a_folder_is_read_by_name_and_missing_columns_are_null(tmp_path, encoder, caplog):
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    write(folder / "b" / "2.jsonl", [{"text": "third", "extra": 1}, {"text": "fourth", "extra": 2.5}])
    write(folder / "a.csv", [{"text": "first"}, {"text": "second"}])
    (folder / "notes.md").write_text("not read")
    (folder / "_done").write_text("left alone")
    (folder / ".hidden.jsonl").write_text("left alone")
    embed_files(folder, tmp_path / "out", encoder=encoder, show_progress=False)
    table = read(tmp_path / "out")
    assert table.column("text").to_pylist() == ["first", "second", "third", "fourth"]
    assert table.column("extra").to_pylist() == [None, None, 1.0, 2.5]
    [message] = [record.getMessage() for record in caplog.records if "other formats" in record.getMessage()]
    assert message.startswith("1 files")
    assert "notes.md" in message


def test_what_csv_and_json_writers_do(tmp_path):
    encoder = Qwen3Encoder("tiny", dimensions=64, max_tokens=64, dtype="float32")
    long_field = "word " * 40_000  # more than the csv module takes by default
    (tmp_path / "rows.csv").write_bytes(
        b'\xef\xbb\xbf"id",text\r\n1,"a\r\nb"\r\n\r\n2,' + long_field.encode() + b"\r\n"
    )
    with pytest.warns(UserWarning, match="was cut to max_tokens=64"):
        embed_files(tmp_path / "rows.csv", tmp_path / "csv", encoder=encoder, part_rows=1)
    assert read(tmp_path / "csv").column("text").to_pylist() == ["a\r\nb", long_field]
    assert read(tmp_path / "csv").column("id").to_pylist() == [1, 2]
    lines = b'\xef\xbb\xbf{"text": "a"}\r\n\n  \n{"text": "lone \\ud800 pair \\ud83d\\ude42", "tags": ["x", null]}'
    (tmp_path / "rows.jsonl").write_bytes(lines)
    embed_files(tmp_path / "rows.jsonl", tmp_path / "json", encoder=encoder, part_rows=1)
    table = read(tmp_path / "json")
    assert table.column("text").to_pylist() == ["a", "lone \ufffd pair 🙂"]
    assert table.column("tags").to_pylist() == [None, ["x", None]]
    np.testing.assert_allclose(vectors_of(table), encoder.encode_documents(["a", "lone \ud800 pair 🙂"]), atol=1e-5)


BAD_LINES = b"""{"text": "good"}
{"text": null}
{"text": 5}
{"other": "x"}
not json
["text"]
{"text": "\xff"}
{"text": "good too"}
"""


def test_bad_rows_are_refused_with_their_places_before_any_work(tmp_path, encoder):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(BAD_LINES)
    before = encoder.usage.texts
    with pytest.raises(ValueError, match="skip-bad") as refused:
        embed_files(source, tmp_path / "out", encoder=encoder, show_progress=False)
    message = str(refused.value)
    for part in (
        f"{source}:2 has 'text': null",
        f"{source}:3 has 'text': int, not a string",
        f"{source}:4 has no 'text'",
        f"{source}:5 is not JSON",
        f"{source}:6 is not a JSON object",
        "and 1 more",
    ):
        assert part in message
    assert encoder.usage.texts == before
    assert not (tmp_path / "out").exists()


def test_bad_rows_go_to_a_file_when_asked(tmp_path, encoder):
    source = tmp_path / "rows.jsonl"
    source.write_bytes(BAD_LINES)
    report = embed_files(source, tmp_path / "out", encoder=encoder, skip_bad=True, show_progress=False)
    assert (report.rows, report.rejected_rows) == (2, 6)
    assert read(tmp_path / "out").column("text").to_pylist() == ["good", "good too"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "_rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rejected] == [2, 3, 4, 5, 6, 7]
    assert rejected[1] == {
        "file": str(source),
        "row": 3,
        "reason": "has 'text': int, not a string",
        "content": '{"text": 5}\n',
    }
    source.write_text('{"text": "good"}\n{"text": "good too"}\n')
    report = embed_files(source, tmp_path / "out", encoder=encoder, show_progress=False)
    assert report.embedded_rows == 0
    assert not (tmp_path / "out" / "_rejected.jsonl").exists()


def test_bad_rows_of_csv_and_parquet(tmp_path, encoder):
    (tmp_path / "rows.csv").write_bytes(b'id,text\n1,"two\nlines"\n2\n3,\xff\n4,good\n')
    with pytest.raises(ValueError, match=r"rows.csv:4 has 1 fields, the heading 2; .*rows.csv:5 is not UTF-8 \("):
        embed_files(tmp_path / "rows.csv", tmp_path / "out", encoder=encoder)
    (tmp_path / "broken.csv").write_bytes(b'id,text\n1,good\n2,"open\n')
    with pytest.raises(ValueError, match=r"broken\.csv:3 is not CSV"):
        embed_files(tmp_path / "broken.csv", tmp_path / "out", encoder=encoder)
    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"\xffa")]
    )
    texts = pa.chunked_array([pa.array(["good", None]), invalid])
    pq.write_table(pa.table({"text": texts, "at": range(4)}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet:2 is null; .*rows.parquet:3 is not UTF-8"):
        embed_files(tmp_path / "rows.parquet", tmp_path / "out", encoder=encoder)
    embed_files(tmp_path / "rows.parquet", tmp_path / "out", encoder=encoder, skip_bad=True, part_rows=1)
    assert read(tmp_path / "out").column("at").to_pylist() == [0, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.bin", b"", "must end in one of .parquet, .jsonl, .ndjson, .json, .csv, .tsv"),
        ("rows.parquet.gz", b"", "must end in one of .parquet"),
        ("rows.jsonl.gz", b"", "cannot be unpacked: it is empty"),
        ("rows.jsonl", b"\n", "has no row with a text"),
        ("rows.csv", b"", "rows.csv:1 must be a heading"),
        ("rows.csv", b"id,body\n1,x\n", "has no column 'text'; it has 'id', 'body'"),
        ("rows.csv", b"text,id,id\nx,1,2\n", "has two columns of one name"),
        ("rows.jsonl", b'{"text": "a", "embedding": 1}\n', "has a column 'embedding' already"),
        ("rows.jsonl", b'{"text": "a", "x": 1}\n{"text": "b", "x": "one"}\n', "column 'x' has no one type"),
        ("rows.jsonl", b'{"text": "a", "x": 99999999999999999999}\n', "column 'x' has no one type"),
        ("rows.parquet", b"not parquet", "is not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, encoder, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        embed_files(tmp_path / name, tmp_path / "out", encoder=encoder)
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused(tmp_path, encoder):
    source = write(tmp_path / "rows.jsonl", rows_of(["a"]))
    with pytest.raises(FileNotFoundError, match=r"there is no .*missing.jsonl"):
        embed_files(tmp_path / "missing.jsonl", tmp_path / "out", encoder=encoder)
    with pytest.raises(ValueError, match="lies in the source"):
        embed_files(tmp_path, tmp_path / "out", encoder=encoder)
    with pytest.raises(ValueError, match="part_rows must be at least 1, got 0"):
        embed_files(source, tmp_path / "out", encoder=encoder, part_rows=0)
    with pytest.raises(TypeError, match="dimensions cannot be given beside encoder="):
        embed_files(source, tmp_path / "out", encoder=encoder, dimensions=32)
    with pytest.raises(ValueError, match="dimensions must be between 32 and 256 for tiny, got 7"):
        embed_files(source, tmp_path / "out", model="tiny", dimensions=7)
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(ValueError, match="has int64 in the column 'text', not text"):
        embed_files(tmp_path / "numbers.parquet", tmp_path / "out", encoder=encoder)
    folder = tmp_path / "two"
    folder.mkdir()
    write(folder / "1.jsonl", [{"text": "a", "x": 1}])
    write(folder / "2.jsonl", [{"text": "b", "x": "one"}])
    with pytest.raises(ValueError, match=r"2.jsonl' has a column of another type than before: .*x"):
        embed_files(folder, tmp_path / "out", encoder=encoder)


def test_what_is_done_is_not_computed_again(tmp_path, encoder):
    texts = [f"text {number}" for number in range(20)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    embed_files(source, tmp_path / "out", encoder=encoder, part_rows=8, show_progress=False)
    first = {file.name: file.stat().st_mtime_ns for file in files_of(tmp_path / "out")}
    before = encoder.usage.texts
    report = embed_files(source, tmp_path / "out", encoder=encoder, part_rows=8, show_progress=False)
    assert (report.rows, report.embedded_rows, encoder.usage.texts) == (20, 0, before)
    assert {file.name: file.stat().st_mtime_ns for file in files_of(tmp_path / "out")} == first
    # A row more: only the part that it belongs to is written, and only that row embedded.
    write(source, rows_of([*texts, "one more"]))
    report = embed_files(source, tmp_path / "out", encoder=encoder, part_rows=8, show_progress=False)
    assert (report.rows, report.embedded_rows, report.embedded_parts, report.reused_rows) == (21, 1, 1, 4)
    assert read(tmp_path / "out").column("text").to_pylist() == [*texts, "one more"]
    # A file before it: the parts only get other numbers.
    folder = tmp_path / "in"
    folder.mkdir()
    source.rename(folder / "b.jsonl")
    write(folder / "a.jsonl", rows_of(["before"]))
    write(folder / "b.jsonl", rows_of(["changed"]))
    with pytest.raises(ValueError, match=r"holds vectors of .*rows.jsonl', which is no longer in the source"):
        embed_files(folder, tmp_path / "out", encoder=encoder, part_rows=8, show_progress=False)
    write(folder / "b.jsonl", rows_of([*texts, "one more"]))
    report = embed_files(folder, tmp_path / "out", encoder=encoder, part_rows=8, show_progress=False)
    assert (report.rows, report.embedded_rows) == (22, 1)
    assert read(tmp_path / "out").column("text").to_pylist() == ["before", *texts, "one more"]


def test_equal_parts_are_all_kept(tmp_path, encoder):
    source = tmp_path / "rows.jsonl"
    source.write_text('{"text": "same"}\n' * 6)
    for _ in range(2):
        embed_files(source, tmp_path / "out", encoder=encoder, part_rows=2, show_progress=False)
        assert len(read(tmp_path / "out")) == 6


def test_a_destination_holds_vectors_of_one_kind(tmp_path, encoder):
    source = write(tmp_path / "rows.jsonl", [{"text": "a", "title": "b"}])
    embed_files(source, tmp_path / "out", encoder=encoder, show_progress=False)
    with pytest.raises(ValueError, match=r"holds vectors of .* choose another destination") as refused:
        embed_files(source, tmp_path / "out", model="tiny", show_progress=False)
    assert encoder.fingerprint in str(refused.value)
    assert Qwen3Encoder("tiny").fingerprint in str(refused.value)
    with pytest.raises(ValueError, match=r"of the column 'text', not of .* of 'title'"):
        embed_files(source, tmp_path / "out", "title", encoder=encoder, show_progress=False)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "out" / "theirs.parquet")
    with pytest.raises(ValueError, match=r"theirs.parquet' was written by something else"):
        embed_files(source, tmp_path / "out", encoder=encoder, show_progress=False)


def test_a_damaged_part_is_computed_again(tmp_path, encoder, caplog):
    texts = [f"text {number}" for number in range(6)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    embed_files(source, tmp_path / "out", encoder=encoder, part_rows=2, show_progress=False)
    damaged = files_of(tmp_path / "out")[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    report = embed_files(source, tmp_path / "out", encoder=encoder, part_rows=2, show_progress=False)
    assert report.embedded_rows == 2
    assert f"{damaged.name} is damaged" in caplog.text
    assert read(tmp_path / "out").column("text").to_pylist() == texts


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path):
    texts = [f"text {number}" for number in range(6)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))

    class ChangingEncoder(Qwen3Encoder):
        def _encode_documents(self, texts, prompt, show_progress):
            write(source, rows_of(["shorter"]))
            return super()._encode_documents(texts, prompt, show_progress)

    with pytest.raises(ValueError, match=r"rows.jsonl' has changed since this began"):
        embed_files(source, tmp_path / "out", encoder=ChangingEncoder("tiny"), part_rows=2, show_progress=False)


def test_cut_texts_are_counted(tmp_path, caplog):
    source = write(tmp_path / "rows.jsonl", rows_of(["word " * 100, "short"]))
    with pytest.warns(UserWarning, match="was cut to max_tokens=16"):
        report = embed_files(source, tmp_path / "out", model="tiny", max_tokens=16, show_progress=False)
    assert report.truncated_texts == 1
    assert "1 of 2 texts were cut to max_tokens" in caplog.text


def test_killed_and_begun_again_every_row_is_there_once(tmp_path):
    texts = [f"text {number}" for number in range(40)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    environment = {**os.environ, "DIES_AT": texts[20], "DIES_IN": str(tmp_path), "DIES_WITH": SIGNALS["SIGKILL"]}
    command = [sys.executable, "-m", "tests.dying", str(source), str(tmp_path / "out"), "files"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -int(SIGNALS["SIGKILL"]), done.stderr
    assert [pq.read_metadata(file).num_rows for file in files_of(tmp_path / "out")] == [8, 8]
    (tmp_path / "out" / ".part-000002-0123456789abcdef.parquet.begun").write_text("half")
    kept = {file.name: file.stat().st_mtime_ns for file in files_of(tmp_path / "out")}
    report = embed_files(source, tmp_path / "out", model="tiny", part_rows=8, show_progress=False)
    assert (report.rows, report.embedded_rows) == (40, 24)
    assert read(tmp_path / "out").column("text").to_pylist() == texts
    assert kept.items() <= {file.name: file.stat().st_mtime_ns for file in files_of(tmp_path / "out")}.items()
    assert not list((tmp_path / "out").glob(".*"))


def test_the_command(tmp_path):
    source = write(tmp_path / "rows.csv", [{"body": "a", "id": 1}, {"body": "b", "id": 2}])
    command = ["embed", str(source), str(tmp_path / "out"), "--model", "tiny", "--text-column", "body"]
    done = CliRunner().invoke(app, [*command, "--dimensions", "32"])
    assert done.exit_code == 0, done.output
    assert "2 rows in 1 files" in done.output
    assert "2 embedded now" in done.output
    assert vectors_of(read(tmp_path / "out")).shape == (2, 32)
    again = CliRunner().invoke(app, [*command, "--dimensions", "32"])
    assert "0 embedded now" in again.output
    other = CliRunner().invoke(app, command)
    assert other.exit_code == 2
    assert "choose another destination" in " ".join(other.output.replace("│", " ").split())
    assert CliRunner().invoke(app, [*command, "--workers", "2"]).exit_code == 2


def test_the_command_over_a_server_writes_what_this_machine_writes(tmp_path, model_folder):
    source = write(tmp_path / "rows.jsonl", rows_of(TEXTS))
    with serving(Model(model_folder)) as server:
        command = ["embed", str(source), str(tmp_path / "out"), "--model", str(model_folder), "--base-url", server.url]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    # The server computes in float32.
    encoder = Qwen3Encoder(model_folder, dtype="float32")
    local = embed_files(source, tmp_path / "local", encoder=encoder, show_progress=False)
    assert [file.name for file in files_of(tmp_path / "out")] == [file.name for file in files_of(tmp_path / "local")]
    np.testing.assert_allclose(vectors_of(read(tmp_path / "out")), vectors_of(read(tmp_path / "local")), atol=1e-5)
    assert f"{local.tokens:,} tokens" in done.output


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, interruptible):
    from tests import dying

    texts = [f"text {number}" for number in range(12)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    for name, value in {"DIES_AT": texts[6], "DIES_IN": str(tmp_path), "DIES_WITH": SIGNALS["SIGINT"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("qwen3_embed_integrations.encoder.Qwen3Encoder", dying.DyingEncoder)
    command = ["embed", str(source), str(tmp_path / "out"), "--model", "tiny", "--part-rows", "4"]
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code == 130
    assert "goes on where this one stopped" in stopped.output
    again = CliRunner().invoke(app, command)
    assert "12 rows in 3 files" in again.output
    assert "8 embedded now" in again.output


def test_urls_are_opened_by_pyarrow(tmp_path, encoder):
    source = write(tmp_path / "rows.jsonl", rows_of(TEXTS))
    embed_files(source.as_uri(), (tmp_path / "out").as_uri(), encoder=encoder, show_progress=False)
    assert read(tmp_path / "out").column("text").to_pylist() == TEXTS


def test_without_pyarrow_the_pip_command_is_named():
    code = "import sys; sys.modules['pyarrow'] = None; from qwen3_embed_integrations.bulk import embed_files"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; embed_files('a.jsonl', 'b', model='tiny')"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "pip install 'qwen3-embed-integrations[bulk]'" in done.stderr
