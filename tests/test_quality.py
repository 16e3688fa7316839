"""Quality against size: measures beside scikit-learn's, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import ndcg_score
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder, truncate
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.quality import Judged, measure, ndcg, read_judged, standard_library_questions

DOCUMENTS = {
    "a": "Copy a directory tree.",
    "b": "Compute a square root.",
    "c": "Parse the command line.",
    "d": "Read a file line by line.",
}
QUERIES = {"q1": "how do I copy a folder?", "q2": "root of a number", "q3": "never judged"}


@pytest.fixture
def files(tmp_path):
    """A data set in BEIR's layout."""
    corpus = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in DOCUMENTS.items())
    (tmp_path / "corpus.jsonl").write_text(corpus)
    queries = "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in QUERIES.items())
    (tmp_path / "queries.jsonl").write_text(queries)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\td\t1\nq2\tb\t1\nq2\tc\t0\n")
    return tmp_path


def test_ndcg_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    for _ in range(50):
        grades = random.integers(0, 4, size=30).astype(float) * (random.random(30) < 0.3)
        grades[3] = 2
        scores = random.normal(size=30)
        found = np.argsort(-scores)[:10]
        relevant = {place: grade for place, grade in enumerate(grades) if grade}
        assert ndcg(found, relevant) == pytest.approx(ndcg_score([grades], [scores], k=10), abs=1e-9)
    assert ndcg(np.array([5, 6]), {0: 1.0}) == 0


def test_files_in_the_layout_of_beir(files):
    judged = read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv")
    assert judged.documents == list(DOCUMENTS.values())
    assert judged.queries == ["how do I copy a folder?", "root of a number"]
    assert judged.relevant == [{0: 2.0, 3: 1.0}, {1: 1.0}]
    assert read_judged(files / "corpus.jsonl", files / "queries.jsonl").relevant is None
    (files / "corpus.jsonl").write_text('{"_id": "a", "title": "Title", "text": "Body"}\n\n')
    assert read_judged(files / "corpus.jsonl", files / "queries.jsonl").documents == ["Title\nBody"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", '{"_id": "a", "text": "x"}\n{"_id": "b"}\n', r"corpus\.jsonl:2 must be a JSON object"),
        ("corpus.jsonl", '{"_id": "a", "text": null}\n', r"corpus\.jsonl:1 must have strings"),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": ""}\n{"_id": "a", "text": ""}\n',
            r"corpus\.jsonl:2 has the _id 'a' again",
        ),
        ("queries.jsonl", "not json\n", r"queries\.jsonl:1 must be a JSON object"),
        ("queries.jsonl", "\n", r"queries\.jsonl is empty"),
        ("qrels.tsv", "q1\ta\t1\nq1\ta\n", r"qrels\.tsv:2 must be query id, document id and grade, got 'q1\\ta'"),
        ("qrels.tsv", "q1\tz\t1\n", r"qrels\.tsv:1 names the document 'z', which is not there"),
        ("qrels.tsv", "q9\ta\t1\n", r"qrels\.tsv:1 names the query 'q9', which is not there"),
        ("qrels.tsv", "q1\ta\t0\n", "no relevant document"),
    ],
)
def test_files_that_are_not(files, name, content, message):
    (files / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv")


def test_every_row_is_what_plain_numpy_finds():
    judged = standard_library_questions()
    judged = Judged("part", judged.documents[:300], judged.queries[:60], judged.relevant[:60])
    encoder = Qwen3Encoder("tiny", query_instruction="code_search")
    report = measure(encoder, judged, [64, 256], model="tiny")
    documents, queries = encoder.encode_documents(judged.documents), encoder.encode_queries(judged.queries)
    nearest = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
    rows = {(row.dimensions, row.precision): row for row in report.rows}
    assert [(key, row.bytes) for key, row in rows.items()] == [
        ((256, "float32"), 1024),
        ((256, "int8"), 256),
        ((256, "binary"), 32),
        ((64, "float32"), 256),
        ((64, "int8"), 64),
        ((64, "binary"), 8),
    ]
    for size in (256, 64):
        found = np.argsort(-(truncate(queries, size) @ truncate(documents, size).T), axis=1)[:, :10]
        row = rows[size, "float32"]
        assert row.recall == pytest.approx(np.mean([query in places for query, places in enumerate(found)]), abs=0.02)
        assert row.agreement == pytest.approx(
            np.mean([np.isin(*pair) for pair in zip(found, nearest, strict=True)]), abs=0.01
        )
        gains = [1 / np.log2(list(places).index(q) + 2) if q in places else 0 for q, places in enumerate(found)]
        assert row.ndcg == pytest.approx(np.mean(gains), abs=0.01)
        assert rows[size, "int8"].ndcg == pytest.approx(row.ndcg, abs=0.02)
        assert rows[size, "int8"].agreement == pytest.approx(row.agreement, abs=0.03)
        assert rows[size, "binary"].agreement < row.agreement
    assert rows[256, "float32"].agreement == 1
    assert all(row.queries_per_second > 0 for row in report.rows)


def test_bad_settings_are_refused_before_any_work():
    judged = Judged("none", ["a"], ["a"], None)
    encoder = Qwen3Encoder("tiny")
    with pytest.raises(ValueError, match="dimensions must be between 1 and 256, got 257"):
        measure(encoder, judged, [64, 257], model="tiny")
    with pytest.raises(ValueError, match="precisions must be among float32, int8, binary, got int4"):
        measure(encoder, judged, [64], ["int4"], model="tiny")


def test_the_command_on_files_with_judgements(files):
    arguments = ["eval", "--corpus", files / "corpus.jsonl", "--queries", files / "queries.jsonl"]
    arguments += ["--qrels", files / "qrels.tsv", "--dimensions", "256,32", "--json", files / "out.json"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--png", str(files / "out.png")])
    assert done.exit_code == 0, done.output
    assert "4 documents, 2 queries" in done.output
    report = json.loads((files / "out.json").read_text())
    assert [row["dimensions"] for row in report["rows"]] == [256] * 3 + [32] * 3
    assert report["rows"][0]["recall"] == 1
    assert (files / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_on_files_without_judgements(files):
    arguments = ["eval", "--corpus", files / "corpus.jsonl", "--queries", files / "queries.jsonl"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--precisions", "float32", "--json", str(files / "out.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((files / "out.json").read_text())["rows"]
    assert [(row["dimensions"], row["ndcg"], row["agreement"]) for row in rows] == [
        (size, None, 1.0) for size in (256, 128, 64, 32)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "x.jsonl"], "give --corpus and --queries"),
        (["--corpus", "no.jsonl", "--queries", "no.jsonl"], "no.jsonl"),
        (["--dimensions", "64,many"], "must be whole numbers with commas between them, got '64,many'"),
        (["--dimensions", "512"], "between 1 and 256"),
        (["--precisions", "int4"], "int4"),
        (["--json", "no/such/folder.json"], "there is no folder"),
    ],
)
def test_the_command_refuses(arguments, message):
    done = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.output
