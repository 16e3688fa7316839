"""Quality by instruction and size: measures beside scikit-learn's and plain numpy's, and the command."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure
from pyarrow import parquet
from scipy import stats
from sklearn.metrics import ndcg_score
from typer.testing import CliRunner

from qwen3_embed_integrations import Qwen3Encoder, quality, truncate
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.quality import (
    Judged,
    _against,
    _draw_instructions,
    compare,
    measure,
    ndcg,
    read_judged,
    standard_library_questions,
)

DOCUMENTS = {
    "a": "Copy a directory tree.",
    "b": "Compute a square root.",
    "c": "Parse the command line.",
    "d": "Read a file line by line.",
}
CRANFIELD = [folder / "shared/data/cranfield.json.gz" for folder in Path(__file__).parents]
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


@pytest.fixture(scope="module")
def judged():
    """Some questions on the standard library."""
    whole = standard_library_questions()
    return Judged("part", whole.documents[:300], whole.queries[:60], whole.relevant[:60])


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
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x"}\n{"_id": "b"}\n',
            r"corpus\.jsonl:2 has no 'text'; it has '_id': text_column",
        ),
        ("corpus.jsonl", '{"_id": "a", "text": null}\n', r"corpus\.jsonl:1 must have a string as its 'text', got None"),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": ""}\n{"_id": "a", "text": ""}\n',
            r"corpus\.jsonl:2 has the _id 'a' again",
        ),
        ("queries.jsonl", "not json\n", r"queries\.jsonl:1 is not JSON"),
        ("queries.jsonl", "\n", r"queries\.jsonl is empty"),
        ("corpus.jsonl", '["_id", "text"]\n', r"corpus\.jsonl:1 is not a JSON object"),
        ("queries.jsonl", b'{"_id": "q1", "text": "x"}\n\xff\n', r"queries\.jsonl:2 is not JSON in UTF-8"),
        ("qrels.tsv", "q1\ta\t1\nq1\ta\t2\n", r"qrels\.tsv:2 judges the document 'a' for the query 'q1' again"),
        ("qrels.tsv", "q1\ta\n", r"qrels\.tsv:1 must be query id, document id and grade, got 'q1\\ta'"),
        ("qrels.tsv", "q1\ta\tgood\n", r"qrels\.tsv:1 must have a number as its grade, got 'good'"),
        ("qrels.tsv", "q1\ta\tnan\n", r"qrels\.tsv:1 must have a number as its grade, got 'nan'"),
        ("qrels.tsv", "q1\ta\t1\nquery-id\tcorpus-id\tscore\n", r"qrels\.tsv:2 must have a number as its grade"),
        ("qrels.tsv", "q1\ta\t1\nq1\ta\n", r"qrels\.tsv:2 must be query id, document id and grade, got 'q1\\ta'"),
        ("qrels.tsv", "q1\tz\t1\n", r"no relevant document .*; the document 'z' \(.*qrels\.tsv:1\) is not there"),
        ("qrels.tsv", "q9\ta\t1\n", r"no relevant document .*; the query 'q9' \(.*qrels\.tsv:1\) is not there"),
        ("qrels.tsv", "q1\ta\t0\n", "no relevant document for any of the queries$"),
        ("corpus.jsonl", '{"text": "x"}\n', r"corpus\.jsonl:1 has no _id; it has 'text'"),
        ("corpus.jsonl", '{"_id": null, "text": "x"}\n', r"corpus\.jsonl:1 has no _id"),
        (
            "corpus.jsonl",
            '{"_id": 1.5, "text": "x"}\n',
            r"corpus\.jsonl:1 must have a string or a whole number as its _id",
        ),
        (
            "queries.jsonl",
            '{"id": true, "text": "x"}\n',
            r"queries\.jsonl:1 must have a string or a whole number as its id",
        ),
        (
            "corpus.jsonl",
            '{"_id": 1, "text": ""}\n{"_id": "1", "text": ""}\n',
            r"corpus\.jsonl:2 has the _id '1' again",
        ),
        (
            "corpus.jsonl",
            '{"_id": "a", "text": "x", "title": ["y"]}\n',
            r"corpus\.jsonl:1 must have a string or a number",
        ),
    ],
)
def test_files_that_are_not(files, name, content, message):
    (files / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv")


@pytest.mark.parametrize(
    "qrels", ["query-id\tcorpus-id\tscore\nq1\ta\t2\nq1\td\t1\nq2\tb\t1\n", "q1 0 a 2\nq1 0 d 1\nq2 0 b 1\nq2 0 c -1\n"]
)
def test_what_editors_and_other_tools_write_is_read_alike(files, qrels):
    expected = read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv")
    (files / "qrels.tsv").write_bytes(b"\xef\xbb\xbf" + f"\n{qrels}\n \n".replace("\n", "\r\n").encode())
    for name in ("corpus", "queries"):
        lines = (files / f"{name}.jsonl").read_bytes()
        (files / f"{name}.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n")))
    read = read_judged(files / "corpus.jsonl.gz", files / "queries.jsonl.gz", files / "qrels.tsv")
    assert (read.documents, read.queries, read.relevant) == (expected.documents, expected.queries, expected.relevant)


def packed(path, content):
    """A file as its name says that it is packed."""
    with pa.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[path.suffix]) as stream:
        stream.write(content)


@pytest.mark.parametrize(
    "name", ["{}.csv", "{}.tsv", "{}.json", "{}.parquet", "{}.jsonl.zst", "{}.csv.gz", "{}.ssv.csv"]
)
def test_every_format_is_read_alike(tmp_path, name):
    sets = {
        "corpus": [{"_id": str(number), "title": "T, t" * (number == 1), "text": f"t {number}"} for number in range(3)],
        "queries": [{"_id": str(number), "text": f"q, {number}"} for number in (7, 8, 9)],
        "qrels": [{"query-id": 7, "corpus-id": "2", "score": 2}, {"query-id": 8, "corpus-id": "0", "score": 0}],
    }
    delimiter = ";" if ".ssv" in name else "\t" if ".tsv" in name else ","
    for stem, rows in sets.items():
        path, format_ = tmp_path / name.format(stem), name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
        if format_ == "parquet":
            parquet.write_table(pa.Table.from_pylist(rows), path)
            continue
        text = io.StringIO(newline="")
        if format_ == "json":
            json.dump(rows, text)
        elif format_ == "jsonl":
            text.writelines(f"{json.dumps(row)}\n" for row in rows)
        else:
            writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        if path.suffix in (".gz", ".zst"):
            packed(path, text.getvalue().encode())
        else:
            path.write_text(text.getvalue(), encoding="utf-8")
    read = read_judged(
        *(tmp_path / name.format(stem) for stem in sets), delimiter=delimiter if ".ssv" in name else None
    )
    assert read.documents == ["t 0", "T, t\nt 1", "t 2"]
    assert read.queries == ["q, 7", "q, 8"]
    assert read.relevant == [{2: 2.0}, {}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qrels.csv", "q1,a,1\n", "no relevant document"),
        (
            "qrels.csv",
            "query-id,corpus-id,grade\nq1,a,1\n",
            r"qrels\.csv:2 must have 'query-id', 'corpus-id', 'score'; it has",
        ),
        (
            "qrels.csv",
            "query-id,corpus-id,score\nq1,a,good\n",
            r"qrels\.csv:2 must have a number as its grade, got 'good'",
        ),
        (
            "qrels.jsonl",
            '{"query-id": "q1", "corpus-id": "a", "score": null}\n',
            r"qrels\.jsonl:1 must have a number as its grade",
        ),
    ],
)
def test_judgements_in_columns_that_are_not(files, name, content, message):
    (files / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / name)


@pytest.mark.parametrize("name", ["qrels.tsv.gz", "qrels.tsv.zst"])
def test_packed_judgements(files, name):
    expected = read_all(files).relevant
    packed(files / name, (files / "qrels.tsv").read_bytes())
    assert read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / name).relevant == expected
    (files / name).write_bytes((files / name).read_bytes()[:-9])
    with pytest.raises((OSError, ValueError), match=name):
        read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / name)


def test_a_line_ends_at_newlines_only(files):
    item = {"_id": "q\u2028\x0b1", "text": "x"}
    (files / "queries.jsonl").write_text(json.dumps(item, ensure_ascii=False) + "\n", encoding="utf-8")
    (files / "qrels.tsv").write_text("q\u2028\x0b1\ta\t1\n", encoding="utf-8")
    assert read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv").relevant == [{0: 1.0}]


def test_a_packed_file_that_is_damaged(files):
    whole = gzip.compress(b'{"_id": "a", "text": "Copy."}\n')
    for damaged in (whole[:-12], b"not packed", whole[:12] + b"\xff" * 8 + whole[20:]):
        (files / "corpus.jsonl.gz").write_bytes(damaged)
        with pytest.raises((OSError, ValueError), match=r"corpus\.jsonl\.gz"):
            read_judged(files / "corpus.jsonl.gz", files / "queries.jsonl")


def read_all(files, **settings):
    return read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv", **settings)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Known:
    """An encoder whose vectors are known, by the text."""

    fingerprint, max_tokens = "known", None

    def __init__(self, vectors):
        self.vectors = vectors
        self.dimensions = len(next(iter(vectors.values())))

    def encode_documents(self, texts, *, instruction=None, show_progress=False):
        return np.stack([self.vectors[text] for text in texts])

    encode_queries = encode_documents


def test_ids_that_are_numbers_are_those_of_the_judgements(files):
    write_lines(files / "corpus.jsonl", [{"id": number, "text": f"t{number}"} for number in (10, 2)])
    write_lines(files / "queries.jsonl", [{"_id": 7, "id": "x", "text": "q"}])
    (files / "qrels.tsv").write_text("7\t2\t1\n")
    assert read_all(files).relevant == [{1: 1.0}]


def test_a_title_is_told_and_one_line_is_not_there_without_it(files):
    write_lines(
        files / "corpus.jsonl", [{"_id": "a", "title": "T", "text": "x"}, {"_id": "b", "title": None, "text": "y"}]
    )
    (files / "qrels.tsv").write_text("q1\ta\t1\n")
    read = read_all(files)
    assert read.documents == ["T\nx", "y"]
    assert read.reading.template == "{title}\n{text}"
    assert read.reading.filled == {"title": 1, "text": 2}
    assert "each document is '{title}\\n{text}': title in 1, text in 2" in read.reading.notes()
    assert read_all(files, template="{text}").documents == ["x", "y"]


@pytest.mark.parametrize(
    ("template", "full", "bare"),
    [
        ("{title}\n{body}", "T\nx", "y"),
        ("{title}\n\n{body}", "T\n\nx", "y"),
        ("{title} {body}", "T x", "y"),
        ("{body} {title}", "x T", "y"),
        ("{title} {year}: {body}", "T 1999: x", ": y"),
        ("Title: {title}\nYear: {year}\n{body}", "Title: T\nYear: 1999\nx", "y"),
        ("  {body}\n---\n{{{title}}}", "  x\n---\n{T}", "  y\n---"),
        ("{body}", "x", "y"),
    ],
)
def test_a_template_leaves_out_what_a_row_lacks(files, template, full, bare):
    rows = [{"_id": "a", "title": "T", "year": 1999, "body": "x"}, {"_id": "b", "title": "", "body": "y"}]
    write_lines(files / "corpus.jsonl", rows)
    (files / "qrels.tsv").write_text("q1\ta\t1\n")
    assert read_all(files, text_column="body", template=template).documents == [full, bare]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{text}\n{titel}",
            r"names the field 'titel' at character 8, which no row of .*corpus\.jsonl has.* '_id', 'text'",
        ),
        ("{titel}", r"corpus\.jsonl:1 has no field of the template's; it has '_id', 'text'"),
        ("text", "has no field"),
        ("", "has no field"),
        ("{text", "cannot be read: expected '}'"),
        ("text}", "cannot be read: Single '}'"),
        ("{}{text}", "cannot be read: a field is its name in braces"),
        ("{text!r}", "cannot be read: a field is its name in braces"),
        ("{text:>9}", "cannot be read: a field is its name in braces"),
    ],
)
def test_templates_that_are_none(files, template, message):
    with pytest.raises(ValueError, match=message):
        read_all(files, template=template)


def test_another_field_with_the_text(files):
    write_lines(files / "corpus.jsonl", [{"_id": "a", "body": "x", "text": "no"}])
    (files / "qrels.tsv").write_text("q1\ta\t1\n")
    read = read_all(files, text_column="body")
    assert (read.documents, read.queries) == (["x"], ["how do I copy a folder?"])
    write_lines(files / "queries.jsonl", [{"_id": "q1", "body": "yes", "text": "no"}])
    assert read_all(files, text_column="body").queries == ["yes"]


# pytrec_eval-terrier 0.5.11 on the judgements and rankings below: ndcg_cut_10, recall_10, recip_rank of each query.
PYTREC_EVAL = {
    "q1": (0.5627272554209044, 0.6666666666666666, 0.5),
    "q2": (0.0, 0.0, 0.0),
    "q3": (0.6309297535714575, 1.0, 0.5),
    "q4": (0.6309297535714575, 1.0, 0.5),
    "q6": (0.0, 0.0, 0.0),
}


def test_what_judgements_lack_counts_as_with_pytrec_eval(files, caplog):
    lines = [
        "q1 a 2",
        "q1 d 1",
        "q1 gone 1",
        "q2 b 0",
        "q3 b 1",
        "q4 a -1",
        "q4 b 1",
        "q9 a 1",
        "q9 gone 1",
        "q6 gone 2",
    ]
    (files / "qrels.tsv").write_text("".join(line.replace(" ", "\t") + "\n" for line in lines))
    rankings = {"q1": "badc", "q2": "abcd", "q3": "abcd", "q4": "abcd", "q5": "abcd", "q6": "abcd"}
    write_lines(files / "queries.jsonl", [{"_id": id_, "text": id_} for id_ in rankings])
    read = read_all(files)
    assert "judgements that name a query which is not there, left out: 2, first 'q9' (" in caplog.text
    assert "judgements that name a document which is not there, never found: 2, first 'gone' (" in caplog.text
    assert read.queries == list(PYTREC_EVAL)
    # A document to a dimension, so that a query's vector is its ranking.
    vectors = {text: np.eye(4, dtype=np.float32)[place] for place, text in enumerate(DOCUMENTS.values())}
    for id_, ranking in rankings.items():
        scores = np.array([4.0 - ranking.index(name) for name in DOCUMENTS], np.float32)
        vectors[id_] = scores / np.linalg.norm(scores)
    report = measure(Known(vectors), read, [4], ["float32"], instructions=["default"], model="known")
    [row] = report.rows
    assert (row.ndcg, row.recall, row.mrr) == pytest.approx(
        tuple(np.mean(list(PYTREC_EVAL.values()), axis=0)), abs=1e-6
    )
    assert row.recall_100 == pytest.approx(row.recall)
    reading = report.to_dict()["reading"]
    assert (reading["unjudged"], reading["without_relevant"]) == (1, 1)
    assert (reading["missing_queries"], reading["missing_documents"]) == (2, 2)


def test_the_ideal_ranking_has_more_documents_than_there_are(files):
    relevant = [{0: 1.0, **dict.fromkeys(range(4, 13), 1.0)}]
    vectors = {text: np.eye(4, dtype=np.float32)[place] for place, text in enumerate(DOCUMENTS.values())}
    read = Judged("few", list(DOCUMENTS.values()), [DOCUMENTS["a"]], relevant)
    [row] = measure(Known(vectors), read, [4], ["float32"], instructions=["default"], model="known").rows
    # pytrec_eval-terrier 0.5.11: ndcg_cut_10 of one relevant document at the top, of ten.
    assert row.ndcg == pytest.approx(0.22009176629808017)
    assert row.recall == pytest.approx(0.1)


@pytest.fixture(scope="module")
def embedded(judged):
    """An encoder that knows the vectors of 120 documents and 60 questions, from `tiny`."""
    encoder = Qwen3Encoder("tiny", dtype="float32")
    texts = [*judged.queries, *judged.documents[:120]]
    return Known(dict(zip(texts, encoder.encode_documents(texts), strict=True)))


@pytest.mark.parametrize("relevant", [[3], [3, 60, 61, 65], [3, 119, 7]])
def test_a_document_left_out_is_as_if_it_were_not_there(judged, embedded, monkeypatch, relevant):
    monkeypatch.setattr(quality, "_ROUND_SECONDS", 0)
    query, documents = judged.queries[0], [*judged.documents[:120]]
    plain = Judged("without", documents, [query], [dict.fromkeys(relevant, 1.0)])
    own = Judged("with", [query, *documents], [query], [dict.fromkeys([1 + place for place in relevant], 1.0)], [0])
    sizes = [256, 64, 32]
    expected, found = (
        measure(embedded, judged, sizes, instructions=["default"], model="known").rows for judged in (plain, own)
    )
    for left, right in zip(expected, found, strict=True):
        # int8 is calibrated on one document more.
        near = 0.1 if right.precision == "int8" else 1e-6
        for name in ("ndcg", "recall", "recall_100", "mrr", "agreement"):
            assert getattr(right, name) == pytest.approx(getattr(left, name), abs=near), (name, right)


def test_all_but_itself_are_found_to_the_full_depth(judged, embedded):
    texts = [*judged.queries[:4], *judged.documents[:30]]
    documents = embedded.encode_documents(texts)
    own = np.array([0, 1, -1, 3])
    for build in quality._SEARCHES.values():
        found = build(documents)(documents[:4], 34, own)
        for row, place in zip(found.tolist(), own, strict=True):
            assert sorted(row) == sorted({*range(34), -1} - {place} if place >= 0 else range(34))
        assert found[2, 0] == 2


ARGUMENTS = [
    ("Cats are clean.", "No, they are not."),
    ("Dogs are loyal.", "To whoever feeds them."),
    ("Cows sing.", "Hm."),
]


@pytest.fixture
def arguments(tmp_path):
    """A set as BEIR's ArguAna: each query is a document too, and its answer another one."""
    write_lines(
        tmp_path / "corpus.jsonl",
        [
            row
            for number, (argument, counter) in enumerate(ARGUMENTS)
            for row in (
                {"_id": f"a{number}", "title": "Pets", "text": argument},
                {"_id": f"c{number}", "text": counter},
            )
        ],
    )
    queries = [f"{ARGUMENTS[0][0]} \n", f"Pets {ARGUMENTS[1][0]}", "Cows dance."]
    write_lines(tmp_path / "queries.jsonl", [{"_id": f"a{place}", "text": text} for place, text in enumerate(queries)])
    (tmp_path / "qrels.tsv").write_text("".join(f"a{number}\tc{number}\t1\n" for number in range(3)) + "a1\ta1\t1\n")
    return tmp_path


def test_a_query_is_a_document_by_its_id_and_its_text(arguments):
    read = read_all(arguments)
    assert read.themselves == [0, 2, -1]
    assert (read.reading.themselves, read.reading.relevant_themselves, read.reading.namesakes) == (2, 1, 1)
    read = read_all(arguments, ignore_identical_ids=True)
    assert read.themselves == [0, 2, 4]
    assert (read.reading.themselves, read.reading.namesakes) == (3, 0)


def test_cranfield_s_queries_have_documents_ids_by_chance(tmp_path):
    file = next(filter(Path.exists, CRANFIELD), None)
    if file is None:
        pytest.skip(f"there is no {CRANFIELD[1]}")
    data = json.loads(gzip.decompress(file.read_bytes()))
    for name in ("corpus", "queries"):
        write_lines(tmp_path / f"{name}.jsonl", [{"_id": id_, "text": text} for id_, text in data[name].items()])
    lines = [f"{query}\t{id_}\t{grade}\n" for query, grades in data["qrels"].items() for id_, grade in grades.items()]
    (tmp_path / "qrels.tsv").write_text("".join(lines))
    read = read_all(tmp_path)
    assert read.themselves is None
    assert (len(read.queries), read.reading.themselves, read.reading.namesakes) == (225, 0, 225)
    assert read_all(tmp_path, ignore_identical_ids=True).reading.themselves == 225


def test_the_command_tells_what_it_did_with_the_files(arguments):
    options = ["eval", "--corpus", "corpus.jsonl", "--queries", "queries.jsonl", "--qrels", "qrels.tsv"]
    options = [str(arguments / option) if "." in option else option for option in options]
    options += ["--dimensions", "256", "--precisions", "float32", "--json", str(arguments / "out.json")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "each document is '{title}\\n{text}': title in 3, text in 6" in done.output
    assert "queries have the id of a document which is left out of their results: 2" in done.output
    assert "of these are judged to be relevant to themselves, and so are never found: 1" in done.output
    report = json.loads((arguments / "out.json").read_text())
    assert report["reading"]["themselves"] == 2
    assert report["rows"][0]["instruction"] == "default"
    done = CliRunner().invoke(app, [*options, "--ignore-identical-ids", "--template", r"{text}\n{title}"])
    assert "each document is '{text}\\n{title}'" in done.output
    assert "left out of their results: 3" in done.output
    report = json.loads((arguments / "out.json").read_text())
    assert report["reading"]["template"] == "{text}\n{title}"
    # Each finds its one answer among the three of the others, its own text not being there.
    assert report["rows"][0]["recall"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_every_row_is_what_plain_numpy_finds(judged):
    encoder = Qwen3Encoder("tiny")
    report = measure(encoder, judged, [64, 256], instructions=["code_search"], model="tiny")
    documents = encoder.encode_documents(judged.documents)
    queries = encoder.encode_queries(judged.queries, instruction="code_search")
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
        ranking = np.argsort(-(truncate(queries, size) @ truncate(documents, size).T), axis=1)
        found, row = ranking[:, :10], rows[size, "float32"]
        # The one relevant document of query 7 is document 7.
        ranks = np.array([1 + list(places).index(query) for query, places in enumerate(ranking)])
        in_ten = ranks <= 10
        assert row.recall == pytest.approx(in_ten.mean(), abs=0.02)
        assert row.recall_100 == pytest.approx((ranks <= 100).mean(), abs=0.02)
        assert row.mrr == pytest.approx((in_ten / ranks).mean(), abs=0.01)
        assert row.ndcg == pytest.approx((in_ten / np.log2(ranks + 1)).mean(), abs=0.01)
        assert row.agreement == pytest.approx(
            np.mean([np.isin(*pair) for pair in zip(found, nearest, strict=True)]), abs=0.01
        )
        assert rows[size, "int8"].ndcg == pytest.approx(row.ndcg, abs=0.02)
        assert rows[size, "int8"].agreement == pytest.approx(row.agreement, abs=0.03)
        assert rows[size, "binary"].agreement < row.agreement
    assert rows[256, "float32"].agreement == 1
    assert all(row.queries_per_second > 0 for row in report.rows)


def test_measures_by_hand():
    relevant = [{1: 2.0, 5: 1.0}, {0: 1.0}]
    scores = _against(relevant, np.array([[3, 1, 2], [7, 8, 9]]), np.array([[3, 1, 2, 5], [7, 8, 9, 6]]))
    assert scores["recall"].tolist() == [1 / 2, 0]
    assert scores["recall_100"].tolist() == [1, 0]
    assert scores["mrr"].tolist() == [1 / 2, 0]
    assert scores["ndcg"] == pytest.approx([(2 / np.log2(3)) / (2 + 1 / np.log2(3)), 0])


def test_an_instruction_is_compared_with_the_first_at_the_same_vectors_and_small_vectors_with_full_ones(judged):
    sentence = "Find functions that do what is asked"
    instructions = ["code_search", "none", sentence]
    encoder = Qwen3Encoder("tiny", query_instruction="web_search")
    report = measure(encoder, judged, [256, 64], ["float32"], instructions=instructions, model="tiny")
    assert report.instructions == instructions
    documents = encoder.encode_documents(judged.documents)
    queries = {
        "code_search": encoder.encode_queries(judged.queries, instruction="code_search"),
        "none": encoder.encode_documents(judged.queries),
        sentence: encoder.encode_queries(judged.queries, instruction=sentence),
    }
    scores = {}
    for instruction, vectors in queries.items():
        for size in (256, 64):
            similarities = truncate(vectors, size) @ truncate(documents, size).T
            ranks = 1 + (similarities > similarities.diagonal()[:, None]).sum(axis=1)
            scores[instruction, size] = (ranks <= 10) / np.log2(ranks + 1)
    assert len(report.rows) == 6
    for row in report.rows:
        key = (row.instruction, row.dimensions)
        if key == ("code_search", 256):
            assert row.difference is None
            continue
        other = ("code_search", 256 if row.instruction == "code_search" else row.dimensions)
        assert (row.difference.instruction, row.difference.dimensions, row.difference.precision) == (*other, "float32")
        assert row.difference.mean == pytest.approx((scores[key] - scores[other]).mean(), abs=0.01)
        interval = stats.ttest_rel(scores[key], scores[other]).confidence_interval()
        assert (row.difference.low, row.difference.high) == pytest.approx(tuple(interval), abs=0.02)
    verdicts = {(row.instruction, row.dimensions): row.difference and row.difference.verdict for row in report.rows}
    assert verdicts["none", 64] == "worse"
    assert verdicts[sentence, 256] != "worse"


@pytest.mark.parametrize("count", [8, 30, 2000])
def test_intervals_are_nearly_student_s(count):
    random = np.random.default_rng(count)
    others = random.beta(2, 2, count)
    scores = np.clip(others + random.normal(0.05, 0.2, count), 0, 1)
    mean, low, high, verdict = compare(scores, others)
    expected = stats.ttest_rel(scores, others).confidence_interval()
    assert mean == pytest.approx((scores - others).mean())
    # Random resamples of a skewed sample: within a tenth of the interval's length.
    near = 0.1 * (expected.high - expected.low)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=near)
    assert verdict == ("better" if low > 0 else "unclear")
    assert compare(scores, others) == (mean, low, high, verdict)
    turned = compare(others, scores)
    assert turned[:3] == pytest.approx((-mean, -high, -low), abs=near)
    assert turned[3] == {"better": "worse", "unclear": "unclear"}[verdict]


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        others = random.beta(2, 2, 40)
        scores = others + np.where(random.random(40) < 0.5, 0, random.normal(0.1, 0.2, 40))
        _, low, high, _ = compare(scores, others)
        held += low <= 0.05 <= high
    # 95% of 150 is 142.5, with a standard deviation of 2.7.
    assert 134 <= held <= 149


def test_what_few_or_equal_scores_can_tell():
    scores = np.array([0.2, 0.5, 0.0, 1.0])
    assert compare(scores, scores) == (0, 0, 0, "same")
    assert compare(np.array([0.75]), np.array([0.5])) == (0.25, -1, 1, "unclear")
    one_query_gained = compare(scores + np.array([0.3, 0, 0, 0]), scores)
    assert one_query_gained[1] == 0
    assert one_query_gained[3] == "unclear"


def test_bad_settings_are_refused_before_any_work():
    judged = Judged("none", ["a"], ["a"], None)
    encoder = Qwen3Encoder("tiny")

    def refused(message, dimensions=(64,), precisions=("float32",), instructions=("web_search",), judged=judged):
        with pytest.raises(ValueError, match=message):
            measure(encoder, judged, dimensions, precisions, instructions=instructions, model="tiny")

    refused("dimensions must be between 1 and 256, got 257", dimensions=[64, 257])
    refused("precisions must be among float32, int8, binary, got int4", precisions=["int4"])
    refused("unknown instruction 'web_serach': did you mean 'web_search'", instructions=["web_serach"])
    refused("instructions must have at least one", instructions=[])
    refused("comparing instructions needs judgements", instructions=["web_search", "none"])
    again = "'Find functions that:' is there twice, as 'code_search' too"
    refused(again, instructions=["code_search", "Find functions that:"], judged=Judged("j", ["a"], ["a"], [{0: 1}]))


def test_the_command_on_files_with_judgements(files):
    arguments = ["eval", "--corpus", files / "corpus.jsonl", "--queries", files / "queries.jsonl"]
    arguments += ["--qrels", files / "qrels.tsv", "--dimensions", "256,32", "--json", files / "out.json"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--png", str(files / "out.png")])
    assert done.exit_code == 0, done.output
    assert "4 documents, 2 queries" in done.output
    report = json.loads((files / "out.json").read_text())
    assert [row["dimensions"] for row in report["rows"]] == [256] * 3 + [32] * 3
    assert {row["instruction"] for row in report["rows"]} == {"default"}
    assert report["rows"][0]["recall"] == 1
    assert (files / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_compares_instructions_in_80_columns(files):
    arguments = ["eval", "--corpus", files / "corpus.jsonl", "--queries", files / "queries.jsonl"]
    arguments += ["--qrels", files / "qrels.tsv", "--dimensions", "256,32", "--precisions", "float32"]
    arguments += ["--instruction", "web_search", "--instruction", "none", "--instruction", "Find the manual's line:"]
    arguments += ["--json", files / "out.json", "--png", files / "out.png"]
    done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    rows = json.loads((files / "out.json").read_text())["rows"]
    shown = [
        line.split() for line in done.output.splitlines() if line.startswith(("web_search ", "none ", "sentence 1 "))
    ]
    assert [line[0] for line in shown] == ["web_search", "none", "sentence"] * 2
    for row, line in zip(rows, shown, strict=True):
        values = [f"{row[name]:.3f}" for name in ("ndcg", "recall", "recall_100", "mrr")]
        assert [line[1 + (line[0] == "sentence")], *line[-3:]] == values
        if row["difference"] is not None:
            assert f"{row['difference']['mean']:+.3f}" in line
            assert row["difference"]["verdict"] in line
    assert "sentence 1: Find the manual's line:" in done.output
    assert (files / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_each_interval(files):
    judged = read_judged(files / "corpus.jsonl", files / "queries.jsonl", files / "qrels.tsv")
    instructions = ["web_search", "none", "code_search"]
    report = measure(Qwen3Encoder("tiny"), judged, [256, 32], ["float32"], instructions=instructions, model="tiny")
    figure = Figure()
    _draw_instructions(report, figure, "title")
    drawn = [list(line.get_xdata()) for line in figure.axes[0].lines]
    compared = [row.difference for row in report.rows if row.instruction != "web_search"]
    assert len(compared) == 4
    assert all([difference.low, difference.high] in drawn for difference in compared)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", "code_search"]


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
        (["--template", "{text}"], "--template and --ignore-identical-ids go with --corpus"),
        (["--tasks", "STS12", "--ignore-identical-ids"], "--template and --ignore-identical-ids go with --corpus"),
        (["--dimensions", "512"], "between 1 and 256"),
        (["--precisions", "int4"], "int4"),
        (["--json", "no/such/folder.json"], "there is no folder"),
    ],
)
def test_the_command_refuses(arguments, message):
    done = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in done.output


def test_none_is_bare_whatever_a_model_was_saved_with(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    prompts = {"prompts": {"query": "q: ", "document": "d: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    found = quality._embed_queries(Qwen3Encoder(folder, dtype="float32"), ["a question"], "none")
    expected = Qwen3Encoder(model_folder, dtype="float32").encode_documents(["a question"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
