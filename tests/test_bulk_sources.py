"""What people's own files and servers do to a bulk job: nothing lost, nothing changed, nothing embedded twice."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from qwen3_embed_integrations import EndpointError, Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.bulk import embed_files
from qwen3_embed_integrations.bulk.rows import Location, read_rows
from qwen3_embed_integrations.cli import app
from tests.misbehaving_server import Model, serving
from tests.test_bulk import files_of, read, rows_of, vectors_of, write


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dimensions=64, dtype="float32", device="cpu")


def embed(source, out, encoder, **options):
    return embed_files(source, out, encoder=encoder, show_progress=False, **options)


def kept(folder):
    return read(folder).drop_columns("embedding").to_pylist()


def rejected(folder):
    return [json.loads(line) for line in (folder / "_rejected.jsonl").read_text().splitlines()]


# What folders' names say.


def partitioned(folder, suffix, values=("en", "de%20AT", "__HIVE_DEFAULT_PARTITION__")):
    for number, value in enumerate(values):
        inner = folder / f"year={2023 + number}" / f"lang={value}"
        inner.mkdir(parents=True)
        write(inner / f"part{suffix}", [{"text": f"text {number}", "id": number}])
    return folder


def test_folders_names_are_columns_as_pyarrow_reads_them(tmp_path, encoder):
    source = partitioned(tmp_path / "in", ".parquet")
    embed(source, tmp_path / "out", encoder)
    expected = ds.dataset(source, format="parquet", partitioning="hive").to_table()
    found = read(tmp_path / "out").drop_columns("embedding")
    key = "text"
    assert sorted(found.to_pylist(), key=lambda row: row[key]) == sorted(expected.to_pylist(), key=lambda row: row[key])
    for name in ("year", "lang"):
        assert found.schema.field(name).type == expected.schema.field(name).type


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_folders_names_are_columns_of_every_format(tmp_path, encoder, suffix):
    embed(partitioned(tmp_path / "in", suffix), tmp_path / "out", encoder)
    assert kept(tmp_path / "out") == [
        {"text": "text 0", "id": 0, "year": 2023, "lang": "en"},
        {"text": "text 1", "id": 1, "year": 2024, "lang": "de AT"},
        {"text": "text 2", "id": 2, "year": 2025, "lang": None},
    ]


@pytest.mark.parametrize("values", [("1", "20"), ("007", "12"), ("1", "x"), ("1", str(2**31)), ("-5", "+5")])
def test_their_types_are_those_that_pyarrow_infers(tmp_path, encoder, values):
    source = partitioned(tmp_path / "in", ".parquet", values)
    embed(source, tmp_path / "out", encoder)
    expected = ds.dataset(source, format="parquet", partitioning="hive").to_table().column("lang")
    found = read(tmp_path / "out").column("lang")
    assert (found.type, sorted(found.to_pylist())) == (expected.type, sorted(expected.to_pylist()))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_a_file_that_says_something_else_than_its_folder(tmp_path, encoder, suffix):
    inner = tmp_path / "in" / "lang=en"
    inner.mkdir(parents=True)
    write(inner / f"part{suffix}", [{"text": "a", "lang": "en"}])
    embed(tmp_path / "in", tmp_path / "out", encoder)
    assert kept(tmp_path / "out") == [{"text": "a", "lang": "en"}]
    write(inner / f"part{suffix}", [{"text": "a", "lang": "en"}, {"text": "b", "lang": "fr"}])
    with pytest.raises(ValueError, match=rf"part{suffix}:\d has 'lang': 'fr', and its folder's name says 'en'"):
        embed(tmp_path / "in", tmp_path / "other", encoder)


# Types.


def test_csv_and_json_lines_go_together(tmp_path, encoder):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text(
        'id,text,weight,done,code\n1,x,0.5,true,007\n,y,,,1e5\n-3,z,2.25,false,"1.50"\n'
    )
    write(tmp_path / "in" / "b.jsonl", [{"id": 4, "text": "q", "weight": 1.25, "done": False, "code": "x"}])
    embed(tmp_path / "in", tmp_path / "out", encoder)
    assert kept(tmp_path / "out") == [
        {"id": 1, "text": "x", "weight": 0.5, "done": True, "code": "007"},
        {"id": None, "text": "y", "weight": None, "done": None, "code": "1e5"},
        {"id": -3, "text": "z", "weight": 2.25, "done": False, "code": "1.50"},
        {"id": 4, "text": "q", "weight": 1.25, "done": False, "code": "x"},
    ]


@pytest.mark.parametrize(
    "fields",
    [
        ["1", "007"],
        ["1", " 2"],
        ["+1", "2"],
        ["1", "1.0x"],
        ["1", str(2**63)],
        ["1.0", "2.50"],
        ["1", "true"],
        ["-0", "1"],
    ],
)
def test_what_is_not_written_as_json_writes_it_stays_text(tmp_path, encoder, fields):
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(f"t,{field}\n" for field in fields))
    embed(tmp_path / "a.csv", tmp_path / "out", encoder, part_rows=1)
    assert read(tmp_path / "out").column("id").to_pylist() == fields


def test_json_text_keeps_csv_text(tmp_path, encoder):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id,text\n1,x\n")
    write(tmp_path / "in" / "b.jsonl", [{"id": "2", "text": "q"}])
    embed(tmp_path / "in", tmp_path / "out", encoder)
    assert read(tmp_path / "out").column("id").to_pylist() == ["1", "2"]


def test_objects_without_entries_are_null(tmp_path, encoder):
    rows = [
        {"_id": "d1", "text": "Copy a tree.", "metadata": {}, "always": {}},
        {"_id": "d2", "text": "b", "metadata": {"a": {"b": {}}}, "tags": [{}, {"x": 1}]},
        {"_id": "d3", "text": "c", "metadata": {"a": {"b": {"c": 1}}}, "tags": []},
    ]
    embed(write(tmp_path / "a.jsonl", rows), tmp_path / "out", encoder, part_rows=1)
    found = kept(tmp_path / "out")
    assert [row["metadata"] for row in found] == [None, {"a": {"b": None}}, {"a": {"b": {"c": 1}}}]
    assert [row["tags"] for row in found] == [None, [None, {"x": 1}], []]
    assert [row["always"] for row in found] == [None] * 3


def test_columns_are_chosen(tmp_path, encoder):
    rows = [{"_id": "d1", "text": "a", "x": 1}, {"_id": "d2", "text": "b", "x": "one"}]
    source = write(tmp_path / "a.jsonl", rows)
    embed(source, tmp_path / "out", encoder, columns=["_id"])
    assert kept(tmp_path / "out") == [{"_id": "d1", "text": "a"}, {"_id": "d2", "text": "b"}]
    command = ["embed", str(source), str(tmp_path / "other"), "--model", "tiny", "--columns", "_id"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert kept(tmp_path / "other") == kept(tmp_path / "out")
    with pytest.raises(ValueError, match="there is no column 'id'; there are '_id', 'text', 'x'"):
        embed(source, tmp_path / "third", encoder, columns=["id"])
    with pytest.raises(TypeError, match="columns must be a list of names, got '_id'"):
        embed(source, tmp_path / "third", encoder, columns="_id")


def with_time(path, number, unit):
    pq.write_table(pa.table({"text": ["a", "b"], "at": pa.array([0, number], pa.timestamp(unit))}), path)


def two_times(folder):
    with_time(folder / "1.parquet", 10**18, "ns")
    with_time(folder / "2.parquet", 9 * 10**16, "us")


def large_integers(folder):
    pq.write_table(pa.table({"text": ["a", "b"], "at": [0, 2**60 + 1]}), folder / "1.parquet")
    pq.write_table(pa.table({"text": ["c"], "at": [0.5]}), folder / "2.parquet")


def numbers(*values):
    return lambda folder: write(folder / "1.jsonl", [{"text": "t", "at": value} for value in values])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        # In one part, or in two.
        (numbers(1, 2, 3, "four"), r"(column 'at' has no one type in|'at' is string at) .*1\.jsonl:4.*--columns"),
        (numbers(1, 2, [3]), r"(column 'at' has no one type in|'at' is list<item: int64> at) .*1\.jsonl:3"),
        (numbers(True, 2), r"(column 'at' has no one type in|'at' is int64 at) .*1\.jsonl:2"),
        (numbers(1, 10**30), r"no one type in .*1\.jsonl:2"),
        (numbers(2**60 + 1, 0.5), r"1\.jsonl:(1|2)"),
        (numbers({"a": 1}, {"a": "x"}), r"1\.jsonl:2"),
        (two_times, r"2\.parquet:2 has a 'at' of timestamp\[us\] that timestamp\[ns\]"),
        (large_integers, r"1\.parquet:2 has a 'at' of int64 that double"),
    ],
)
@pytest.mark.parametrize("part_rows", [1, 2, 4096])
def test_columns_of_two_types_are_refused_with_their_place_before_any_work(tmp_path, encoder, make, message, part_rows):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    before = encoder.usage.texts
    with pytest.raises(ValueError, match=message):
        embed(tmp_path / "in", tmp_path / "out", encoder, part_rows=part_rows)
    assert encoder.usage.texts == before
    assert not (tmp_path / "out").exists()


def test_whole_numbers_beside_fractions_are_told(tmp_path, encoder, caplog):
    numbers(1, 2, 2.5)(tmp_path)
    embed(tmp_path / "1.jsonl", tmp_path / "out", encoder, part_rows=1)
    assert read(tmp_path / "out").column("at").to_pylist() == [1, 2, 2.5]
    assert "column 'at' has whole numbers and fractions" in caplog.text


# Formats.


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "array.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_all_formats_packed_or_not(tmp_path, encoder, name, packed):
    rows = [{"id": number, "text": f"text {number}, with a comma"} for number in range(5)]
    if name == "a.parquet":
        if packed:
            pytest.skip("Parquet is packed inside")
        content = write(tmp_path / "made.parquet", rows).read_bytes()
    elif name == "array.json":
        content = json.dumps(rows, indent=1).encode()
    elif name in ("a.csv", "a.tsv"):
        mark = "\t" if name == "a.tsv" else ","
        content = "".join(f'{row["id"]}{mark}"{row["text"]}"\n' for row in rows).encode()
        content = f"id{mark}text\n".encode() + content
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    source = tmp_path / f"{name}{packed}"
    if packed:
        with pa.CompressedOutputStream(pa.OSFile(str(source), "wb"), {".gz": "gzip", ".zst": "zstd"}[packed]) as stream:
            stream.write(content)
    else:
        source.write_bytes(content)
    found = [row.values for row in read_rows(Location.of(source)) if row.values]
    assert [{**row, "id": int(row["id"])} for row in found] == rows
    embed(source, tmp_path / "out", encoder, part_rows=2)
    assert kept(tmp_path / "out") == rows
    # A run that goes on in the middle.
    files_of(tmp_path / "out")[1].unlink()
    assert embed(source, tmp_path / "out", encoder, part_rows=2).embedded_parts == 1
    assert kept(tmp_path / "out") == rows


def test_a_named_delimiter(tmp_path, encoder):
    (tmp_path / "a.csv").write_text("id;text\n1;a, b\n")
    with pytest.raises(ValueError, match=r"has no column 'text'; it has 'id;text'; is the delimiter another one"):
        embed(tmp_path / "a.csv", tmp_path / "out", encoder)
    embed(tmp_path / "a.csv", tmp_path / "out", encoder, delimiter=";")
    assert kept(tmp_path / "out") == [{"id": 1, "text": "a, b"}]
    (tmp_path / "tabs.csv").write_text("id\ttext\n1\ta, b\n")
    # As a shell passes it on.
    assert [row.values for row in read_rows(Location.of(tmp_path / "tabs.csv"), delimiter="\\t")] == [
        {"id": "1", "text": "a, b"}
    ]
    with pytest.raises(ValueError, match="delimiter must be one character"):
        embed(tmp_path / "a.csv", tmp_path / "out", encoder, delimiter="ab")


def test_one_bad_row_of_csv_is_one_bad_row(tmp_path, encoder):
    source = tmp_path / "a.csv"
    source.write_text('id,text\n1,"open\n2,good\n3,"two\nlines"\n4,x,y\n5,"a\nb,c" x\n6,last\n7,"never closed\n8,end\n')
    report = embed(source, tmp_path / "out", encoder, skip_bad=True)
    assert [row["text"] for row in kept(tmp_path / "out")] == ["good", "two\nlines", "last", "end"]
    assert [row["row"] for row in rejected(tmp_path / "out")] == [2, 6, 7, 8, 10]
    assert report.rejected_rows == 5


def test_a_folder_of_documents(tmp_path, encoder):
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("plain\n\ttext", encoding="utf-8")
    (source / "empty.txt").write_text("")
    (source / "sub" / "b.md").write_text("# Head\n\nwords")
    head, script = "<head><title>no</title></head>", "<script>no()</script>"
    page = f"{head}<body><h1>Über  uns</h1><p>a <b>bold</b>\nword</p>{script}<pre>x\n  y</pre>"
    (source / "c.html").write_text(page, encoding="utf-8")
    (source / "picture.png").write_bytes(b"\x89PNG")
    report = embed(source, tmp_path / "out", encoder)
    assert kept(tmp_path / "out") == [
        {"text": "plain\n\ttext", "source": "a.txt"},
        {"text": "Über uns\na bold word\nx\n  y", "source": "c.html"},
        {"text": "", "source": "empty.txt"},
        {"text": "# Head\n\nwords", "source": "sub/b.md"},
    ]
    assert report.parts == 1
    (source / "d.txt").write_text("one more")
    assert embed(source, tmp_path / "out", encoder).embedded_rows == 1
    (source / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt:1 is not in UTF-8"):
        embed(source, tmp_path / "out", encoder)
    assert embed(source, tmp_path / "out", encoder, skip_bad=True).rejected_rows == 1
    embed(source / "a.txt", tmp_path / "one", encoder)
    assert kept(tmp_path / "one") == [{"text": "plain\n\ttext", "source": "a.txt"}]


# Rows are known by their texts.


def changed(encoder, source, out):
    """Run a job again; what it embedded, and the texts in their order with the right vectors."""
    before = encoder.usage.texts
    report = embed(source, out, encoder, part_rows=8)
    table = read(out)
    texts = table.column("text").to_pylist()
    np.testing.assert_allclose(vectors_of(table), encoder.encode_documents(texts), atol=1e-5)
    assert encoder.usage.texts - before - len(texts) == report.embedded_rows
    assert not list(out.glob(".*"))
    return report.embedded_rows, texts


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_is_moved_or_changed_embeds_new_texts_only(tmp_path, encoder, suffix):
    texts = [f"text {number}" for number in range(50)]
    out = tmp_path / "out"

    def source(name, texts, **columns):
        path = tmp_path / f"{name}{suffix}"
        write(path, [{"text": text, "id": number, **columns} for number, text in enumerate(texts)])
        return path

    first = source("first", texts)
    assert changed(encoder, first, out) == (50, texts)
    moved = tmp_path / "elsewhere" / first.name
    moved.parent.mkdir()
    first.rename(moved)
    assert changed(encoder, moved, out) == (0, texts)
    moved.unlink()
    assert changed(encoder, source("longer", [*texts, "one more"]), out) == (1, [*texts, "one more"])
    assert changed(encoder, source("longer", texts[1:]), out) == (0, texts[1:])
    assert changed(encoder, source("longer", texts[20:] + texts[1:20]), out) == (0, texts[20:] + texts[1:20])
    assert changed(encoder, source("longer", [*texts[30:], "new"], other="column"), out) == (1, [*texts[30:], "new"])
    (tmp_path / f"longer{suffix}").unlink()
    with pytest.raises(ValueError, match="which is no longer in the source, nor are most of its texts"):
        changed(encoder, source("another", [f"unlike {number}" for number in range(50)]), out)
    assert len(read(out)) == 21


def test_an_interrupted_change_goes_on(tmp_path, encoder):
    texts = [f"text {number}" for number in range(40)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    embed(source, tmp_path / "out", encoder, part_rows=8)
    write(source, rows_of(["new at the top", *texts]))

    class Stopping(Qwen3Encoder):
        def _encode_documents(self, texts, prompt, show_progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(source, tmp_path / "out", Stopping("tiny", dimensions=64, dtype="float32", device="cpu"), part_rows=8)
    assert changed(encoder, source, tmp_path / "out") == (1, ["new at the top", *texts])


# Servers.


@pytest.fixture(scope="module")
def model(model_folder):
    return Model(model_folder)


@pytest.fixture
def server(model):
    with serving(model) as server:
        yield server


def remote(server, model_folder, **settings):
    return RemoteEncoder(server.url, model=model_folder, max_retries=1, **settings)


def test_too_long_a_row_is_found_in_the_check(tmp_path, server, model_folder):
    source = write(tmp_path / "rows.jsonl", rows_of(["a", "word " * 100, "b", "word " * 200]))
    with remote(server, model_folder, max_tokens=50) as encoder:
        with pytest.raises(ValueError, match=r"rows\.jsonl:2 has \d+ tokens, more than max_tokens=50; .*rows\.jsonl:4"):
            embed(source, tmp_path / "out", encoder)
        assert not server.requests
        assert not (tmp_path / "out").exists()
        for _ in range(2):
            report = embed(source, tmp_path / "out", encoder, skip_bad=True, part_rows=1)
            assert (report.rows, report.rejected_rows) == (2, 2)
        assert report.embedded_rows == 0
    assert read(tmp_path / "out").column("text").to_pylist() == ["a", "b"]
    assert [row["row"] for row in rejected(tmp_path / "out")] == [2, 4]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_long_text_error_is_found_in_the_check(tmp_path, suffix):
    source = write(tmp_path / f"rows{suffix}", rows_of(["a", "word " * 100, "b"]))
    encoder = Qwen3Encoder("tiny", max_tokens=32, long_text="error", dtype="float32", device="cpu")
    with pytest.raises(ValueError, match=rf"rows{suffix}:\d has 102 tokens, more than max_tokens=32"):
        embed(source, tmp_path / "out", encoder)
    embed(source, tmp_path / "out", encoder, skip_bad=True)
    assert read(tmp_path / "out").column("text").to_pylist() == ["a", "b"]


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_a_row_that_a_server_refuses_is_set_aside(tmp_path, server, model_folder, reference, status):
    texts = [f"text {number}" for number in range(12)]
    source = write(tmp_path / "rows.jsonl", rows_of(texts))
    server.refuses = {texts[3]: status, texts[9]: status}
    with remote(server, model_folder, batch_size=4) as encoder:
        with pytest.raises(EndpointError, match=r"rows\.jsonl:4: .*status"):
            embed(source, tmp_path / "out", encoder, part_rows=6)
        report = embed(source, tmp_path / "out", encoder, part_rows=6, skip_bad=True)
        assert (report.rows, report.embedded_rows, report.rejected_rows) == (10, 10, 2)
        found = rejected(tmp_path / "out")
        assert [(row["row"], row["content"]) for row in found] == [(4, texts[3]), (10, texts[9])]
        assert all(row["file"] == str(source) for row in found)
        table = read(tmp_path / "out")
        good = [text for text in texts if text not in server.refuses]
        assert table.column("text").to_pylist() == good
        np.testing.assert_allclose(vectors_of(table), reference(good), atol=1e-5)
        # What was set aside stays so, and is told again.
        again = embed(source, tmp_path / "out", encoder, part_rows=6, skip_bad=True)
        assert (again.rows, again.embedded_rows, again.rejected_rows) == (10, 0, 2)
        assert rejected(tmp_path / "out") == found
        # Without the wish, such rows are asked for again, and only they.
        server.refuses = {}
        whole = embed(source, tmp_path / "out", encoder, part_rows=6)
        assert (whole.rows, whole.embedded_rows, whole.rejected_rows) == (12, 2, 0)
    assert read(tmp_path / "out").column("text").to_pylist() == texts
    assert not (tmp_path / "out" / "_rejected.jsonl").exists()


def test_an_error_of_the_whole_server_names_the_rows(tmp_path, server, model_folder):
    source = write(tmp_path / "rows.jsonl", rows_of(["a", "b", "c"]))
    server.key = "another"
    with (
        remote(server, model_folder) as encoder,
        pytest.raises(EndpointError, match=r"status 401.*of the rows from .*rows\.jsonl:1 on"),
    ):
        embed(source, tmp_path / "out", encoder, skip_bad=True)


# Files that are broken, and places that can't be written.


def packed_short(path):
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-8])


def folder_named_like_a_file(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.jsonl.gz", packed_short, "cannot be unpacked: .*fetch it again"),
        ("a.jsonl.gz", lambda path: path.write_bytes(b"no archive"), "cannot be unpacked"),
        ("a.json", lambda path: path.write_text('[{"text": "a"'), "is not JSON in UTF-8"),
        ("a.jsonl", folder_named_like_a_file, "has no file that ends in one of"),
        ("a.jsonl", lambda path: path.symlink_to(path.parent / "nowhere"), "there is no"),
        ("a.parquet", lambda path: path.write_bytes(b"PAR1" + b"x" * 100), "is not a Parquet file"),
        ("a.txt", lambda path: path.write_bytes(b"\xff\xfe"), "is not in UTF-8"),
    ],
)
def test_broken_sources_are_told_in_one_line(tmp_path, name, make, message):
    make(tmp_path / name)
    done = CliRunner().invoke(app, ["embed", str(tmp_path / name), str(tmp_path / "out"), "--model", "tiny"])
    assert done.exit_code == 2
    [line] = [line for line in done.output.splitlines() if line.startswith("Error:")]
    assert str(tmp_path / name) in line
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path, encoder):
    source = write(tmp_path / "rows.jsonl", rows_of(["a"]))
    (tmp_path / "file").write_text("")
    command = ["embed", str(source), str(tmp_path / "file" / "out"), "--model", "tiny"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert str(tmp_path / "file" / "out") in done.output
    assert "Invalid value" not in done.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_names_the_file(tmp_path, encoder, monkeypatch):
    from qwen3_embed_integrations.bulk import job

    # The begun file's name is made of this; a link of that name leads to a device that is always full.
    monkeypatch.setattr(job, "uuid4", lambda: type("Fixed", (), {"hex": "fixed"}))
    source = write(tmp_path / "rows.jsonl", rows_of(["a"]))
    embed(source, tmp_path / "out", encoder)
    [name] = [file.name for file in files_of(tmp_path / "out")]
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{name}.fixed").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"{name}' cannot be written: .*No space left on device"):
        embed(source, tmp_path / "out", encoder)
    assert not files_of(tmp_path / "out")


def test_the_command_says_which_model_it_took(tmp_path):
    source = write(tmp_path / "rows.jsonl", rows_of(["a"]))
    done = CliRunner().invoke(app, ["embed", str(source), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "by tiny, which ships with this package for trying" in done.output
    told = CliRunner().invoke(app, ["embed", str(source), str(tmp_path / "out"), "--model", "tiny"])
    assert "for trying" not in told.output
