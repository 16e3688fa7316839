"""Costs: tokens against transformers' own tokenizer, sizes against numpy's, money against the founding example."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.parquet import write_table
from transformers import AutoTokenizer
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder, cost
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.cost import PRICES, estimate, storage
from qwen3_embed_integrations.models import MODELS

TEXTS = [
    "Copy a directory tree.",
    'a "quoted" text,\nwith\tmore lines\r\n',
    "",
    "  ",
    "中国的首都是哪里?",
    "word " * 40_000,
]
[FOUNDING] = [price for price in PRICES if price.source == "this project's brief"]


@pytest.fixture(scope="module")
def unloadable(model_folder, tmp_path_factory):
    """A model's tokenizer without its weights, which counting does without."""
    weights = shutil.ignore_patterns("*.safetensors")
    return str(shutil.copytree(model_folder, tmp_path_factory.mktemp("models") / "tokenizer", ignore=weights))


@pytest.fixture(scope="module")
def count(model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    return lambda texts: sum(len(tokenizer(text)["input_ids"]) for text in texts)


def write(path, texts, column="text"):
    if path.suffix == ".jsonl":
        lines = [json.dumps({"id": place, column: text}) for place, text in enumerate(texts)]
        path.write_text("\n".join([*lines[:2], "", *lines[2:]]), encoding="utf-8")
    elif path.suffix == ".csv":
        # As spreadsheets write it, with a byte order mark.
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([["id", column], *enumerate(texts)])
    else:
        write_table(pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=2)
    return path


def test_the_founding_example(unloadable):
    """100 million tokens a day: $1 against $13, $365 against $4,745 a year."""
    [large] = [price for price in PRICES if price.model == "text-embedding-3-large"]
    found = estimate(model=unloadable, daily_tokens=100_000_000, prices=[FOUNDING, large])
    assert [(charge.run, charge.day, charge.year) for charge in found.charges] == [(None, 1, 365), (None, 13, 4745)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_tokens_of_rows_are_counted_exactly(unloadable, count, tmp_path, kind):
    limit = csv.field_size_limit()
    first, second = (write(tmp_path / f"{name}.{kind}", TEXTS, "body") for name in "ab")
    found = estimate([first, second], unloadable, text_column="body", prices=[FOUNDING])
    assert (found.files, found.texts, found.tokens) == (2, 2 * len(TEXTS), 2 * count(TEXTS))
    assert found.longer_than_context == 2
    assert found.charges[0].run == Decimal("0.01") * found.tokens / 10**6
    assert csv.field_size_limit() == limit


def test_any_other_file_is_one_text(unloadable, count, tmp_path):
    for place, text in enumerate(TEXTS):
        (tmp_path / f"{place}.md").write_bytes(text.encode())
    found = estimate(sorted(tmp_path.iterdir()), unloadable)
    assert (found.texts, found.tokens, found.longer_than_context) == (len(TEXTS), count(TEXTS), 1)


def test_a_large_file_passes_in_batches(unloadable, count, tmp_path):
    texts = [f"text number {number}" for number in range(2500)]
    found = estimate([write(tmp_path / "many.parquet", texts)], unloadable)
    assert (found.texts, found.tokens) == (2500, count(texts))


@pytest.mark.parametrize("model", list(MODELS.values()), ids=lambda spec: spec.name)
def test_storage_is_what_numpy_stores(model):
    rows = {(row.dimensions, row.precision): row.bytes for row in storage(model.max_dimensions)}
    sizes = {size for size, _ in rows}
    assert {32, 64, 128, model.max_dimensions} <= sizes
    assert min(sizes) == model.min_dimensions
    for size in sizes:
        for precision in ("float32", "float16", "int8"):
            assert rows.pop((size, precision)) == np.zeros(size, dtype=precision).nbytes
        assert rows.pop((size, "binary")) == np.packbits(np.zeros(size, dtype=bool)).nbytes
    assert not rows


def test_every_price_has_a_date_and_a_source():
    for price in PRICES:
        assert date.fromisoformat(price.as_of + "-01"[: 10 - len(price.as_of)]) <= date(2026, 11, 25)
        assert price is FOUNDING or re.fullmatch(r"https://[\w.-]+/\S+", price.source)
        assert price.usd_per_million_tokens > 0
    amounts = [price.usd_per_million_tokens for price in PRICES]
    assert amounts == sorted(amounts)
    assert len({(price.provider, price.model) for price in PRICES}) == len(PRICES)


def test_this_machine_takes_as_long_as_its_speed_says(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_SAMPLE_SECONDS", 0)
    file = write(tmp_path / "a.jsonl", [f"text number {number}" for number in range(1500)])
    found = estimate([file], str(model_folder), daily_tokens=10**6, watts=50)
    local = found.local
    assert local.tokens_per_second > 0
    assert local.hours * 3600 * local.tokens_per_second == pytest.approx(found.tokens)
    assert local.hours_a_day * 3600 * local.tokens_per_second == pytest.approx(10**6)
    assert (local.kwh, local.kwh_a_day) == pytest.approx((local.hours * 0.05, local.hours_a_day * 0.05))
    encoder = Qwen3Encoder(model_folder)
    assert (local.device, local.dtype) == (encoder.device, encoder.dtype)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "fine"}\n\n{"text": null}\n', r"a.jsonl:3 has 'text': null"),
        ("a.jsonl", '{"text": "fine"}\n{"body": "x"}\n', r"a.jsonl:2 has no 'text'"),
        ("a.csv", "id,body\n1,x\n", r"a.csv' has no column 'text'; it has 'id', 'body'"),
        ("a.csv", 'id,text\n1,"x\ny"\n\n2\n', r"a.csv:5 has 1 fields, the heading 2"),
        ("a.parquet", "no parquet", r"a.parquet' is not a Parquet file"),
        ("a.txt", b"caf\xe9", r"a.txt is not in UTF-8"),
    ],
)
def test_wrong_files_are_refused_before_anything_is_counted(unloadable, tmp_path, monkeypatch, name, content, message):
    good, bad = tmp_path / "good.txt", tmp_path / name
    good.write_text("a good text")
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(Qwen3Encoder, "count_tokens", lambda *_: pytest.fail("counted"))
    with pytest.raises(ValueError, match=message):
        estimate([good, bad], unloadable)


def test_rows_of_parquet_files(unloadable, tmp_path):
    with pytest.raises(ValueError, match=r"b.parquet:3 is null"):
        estimate([write(tmp_path / "b.parquet", ["x", "y", None])], unloadable)
    with pytest.raises(ValueError, match=r"c.parquet' has int64 in the column 'text', not text"):
        estimate([write(tmp_path / "c.parquet", [1, 2])], unloadable)


def test_missing_files_and_numbers_out_of_range(unloadable, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.txt"):
        estimate([tmp_path / "none.txt"], unloadable)
    with pytest.raises(ValueError, match="there is no text in the folder"):
        estimate([tmp_path], unloadable)
    with pytest.raises(ValueError, match="give files, or the tokens of a day"):
        estimate(model=unloadable)
    with pytest.raises(ValueError, match="daily_tokens must be at least 0, got -1"):
        estimate(model=unloadable, daily_tokens=-1)
    with pytest.raises(TypeError, match="daily_tokens must be an integer"):
        estimate(model=unloadable, daily_tokens=0.5)
    with pytest.raises(ValueError, match="watts must be more than 0, got 0"):
        estimate(model=unloadable, daily_tokens=1, watts=0)
    with pytest.raises(ValueError, match="unknown model '5B'"):
        estimate(model="5B", daily_tokens=1)


def test_rows_without_pyarrow_name_the_pip_command(unloadable, tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", ["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'qwen3-embed-integrations\[bulk\]'"):
        estimate([file], unloadable)
    (tmp_path / "a.txt").write_text("x")
    assert estimate([tmp_path / "a.txt"], unloadable).texts == 1


def run(*arguments):
    done = CliRunner().invoke(app, ["cost", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, " ".join(done.output.split())


def test_the_command_prints_and_writes_it_all(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_SAMPLE_SECONDS", 0)
    file, report = write(tmp_path / "a.csv", ["Copy a directory tree.", "x"]), tmp_path / "cost.json"
    code, output = run(file, "--daily-tokens", 100_000_000, "--price", "mine=0.0125", "--json", report)
    assert code == 0
    tokens = sum(Qwen3Encoder("tiny").count_tokens(["Copy a directory tree.", "x"]))
    assert tokens == 8
    assert "8 tokens by the tokenizer of tiny, end tokens included (texts: 2, files: 1)" in output
    assert "counts more tokens than they do" in output
    assert re.search(r"yours \W+ mine \W+ \$0\.0125 \W+ \$0\.00000010 \W+ \$1\.25 \W+ \$456\.25", output)
    assert re.search(r"text-embedding-3-large .* \$0\.13 \W+ \$0\.0000010 \W+ \$13\.00 \W+ \$4,745\.00", output)
    assert "other tokenizers" in output
    assert re.search(r"256 \W+ 1,024 \W+ 512 \W+ 256 \W+ 32", output)
    assert re.search(r"This machine \(\w+, \w+\): [\d,]+ tokens/s, measured just now", output)
    assert "at 200 W, an assumption: --watts says better" in output
    found = json.loads(report.read_text())
    assert found["tokens"] == tokens
    assert found["charges"][0]["year"] == 456.25
    assert found["charges"][-1]["price"]["source"] == PRICES[-1].source


def test_the_command_without_weights(unloadable):
    code, output = run("--daily-tokens", 5, "--model", unloadable, "--watts", 10)
    assert code == 0
    assert "are not on this machine, so its speed is not known" in output
    assert "tokenizer of" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give files, or the tokens of a day, or both"),
        (["none.txt"], "there is no file none.txt"),
        (["--daily-tokens", "-5"], "Invalid value for '--daily-tokens'"),
        (["--daily-tokens", "5", "--price", "0.01"], "must be NAME=DOLLARS, such as mine=0.01, got '0.01'"),
        (["--daily-tokens", "5", "--price", "mine=nan"], "must be NAME=DOLLARS"),
        (["--daily-tokens", "5", "--price", "mine=-1"], "must be NAME=DOLLARS"),
        (["--daily-tokens", "5", "--json", "/no/such/folder/a.json"], "there is no folder /no/such/folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    code, output = run(*arguments)
    assert code == 2
    assert message in re.sub(r" │ │ | *│ *", " ", output)


def test_a_folder_is_all_of_its_files_and_what_is_no_text_is_named(unloadable, count, tmp_path):
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    write(folder / "rows.jsonl", TEXTS[:2])
    (folder / "below" / "rows.tsv").write_text("id\ttext\n1\ta tab\n")
    (folder / "below" / "note.md").write_text("# a note")
    (folder / "page.html").write_text("<title>T</title><style>p {}</style><p>seen <b>bold</b></p><script>no()</script>")
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "zeros.bin").write_bytes(bytes(100))
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "package.json").write_text('{\n "name": "x"\n}\n')
    (folder / "other.csv").write_text("id,body\n1,x\n")
    (folder / ".hidden").write_text("left alone")
    found = estimate([folder], unloadable)
    assert found.files == 4
    assert found.tokens == count([*TEXTS[:2], "a tab", "# a note", "seen bold"])
    names = {"image.png", "zeros.bin", "latin.txt", "package.json", "other.csv"}
    assert {name for name in names for reason in found.passed_by if name in reason} == names
    assert len(found.passed_by) == len(names)
    code, output = run(folder, "--model", unloadable)
    assert code == 0
    assert "image.png is not text" in output
    (folder / "rows.jsonl").write_text('{"text": "fine"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 has 'text': null"):
        estimate([folder], unloadable)


def test_packed_files_and_delimiters(unloadable, count, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "b.csv").write_text("id;text\n1;two\n")
    files = [tmp_path / "a.jsonl.gz", tmp_path / "b.csv"]
    assert estimate(files, unloadable, delimiter=";").tokens == count(["one", "two"])
    with pytest.raises(ValueError, match=r"b\.csv' has no column 'text'.*the delimiter another one"):
        estimate(files, unloadable)
    assert run(*files, "--model", unloadable, "--delimiter", ";")[0] == 0


def without_modules(folder):
    (folder / "modules.json").unlink()


def without_pooling(folder):
    shutil.rmtree(folder / "1_Pooling")


def with_a_pointer(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"
    )


def with_compressed_tensors(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change", [lambda folder: None, without_modules, without_pooling, with_a_pointer, with_compressed_tensors]
)
def test_the_command_counts_whatever_keeps_the_weights_from_loading(unloadable, tmp_path, change):
    folder = shutil.copytree(unloadable, tmp_path / "model")
    change(folder)
    (tmp_path / "a.txt").write_text("a text")
    code, output = run(tmp_path / "a.txt", "--model", folder)
    assert code == 0, output
    assert "tokens by the tokenizer of" in output
    assert "so its speed is not known" in output


def test_config_and_tokenizer_are_enough(unloadable, count, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{unloadable}/{name}", folder)
    (tmp_path / "a.txt").write_text("a text")
    assert estimate([tmp_path / "a.txt"], str(folder)).tokens == count(["a text"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone counts each core's work")
def test_other_work_is_seen():
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout.readline() == b"\n"
        before, other = cost._Work.now(), None
        while other is None:
            other = before.others_until(cost._Work.now())
        assert other > 0.3
    finally:
        busy.kill()
        busy.communicate()


def test_a_speed_that_was_measured_beside_other_work_says_so(monkeypatch):
    for cores, told in ((0.01, False), (1.5, True)):
        monkeypatch.setattr(cost._Work, "others_until", lambda self, later, cores=cores: cores)
        code, output = run("--daily-tokens", 5)
        assert code == 0
        assert ("beside other work on 1.5 of" in output) is told
