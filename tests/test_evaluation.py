"""MTEB over an encoder: instructions, scores beside independent ones and MTEB's own wrapper, resuming, the command."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets.config
import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_implementations.qwen3_models import instruction_template, q3e_instruct_loader
from mteb.results import TaskResult
from mteb.types import PromptType
from scipy.stats import spearmanr
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from qwen3_embed_integrations import INSTRUCTIONS, MODELS, Qwen3Encoder, RemoteEncoder
from qwen3_embed_integrations.cli import app
from qwen3_embed_integrations.evaluation import (
    PUBLISHED,
    DatasetError,
    MTEBEncoder,
    benchmark_tasks,
    evaluate,
    read_task_prompts,
    select_tasks,
)
from qwen3_embed_integrations.models import TINY_FOLDER
from qwen3_embed_integrations.quality import standard_library_questions
from tests.conftest import as_query
from tests.misbehaving_server import Model, serving

FIND = "Given a description, retrieve the Python function or class that it describes"
SIMILAR = "Retrieve descriptions of Python functions that do similar things"
ENGLISH, MULTILINGUAL = "MTEB(eng, v2)", "MTEB(Multilingual, v2)"

JUDGED = standard_library_questions()
DOCUMENTS, QUERIES = [text[:200].strip() for text in JUDGED.documents[:100]], list(JUDGED.queries[:40])


def described(name, kind, prompt=None):
    """What MTEB asks of a task, with nothing in it that these tests need but name, type and prompt."""
    return TaskMetadata(
        name=name,
        description="Made by a test.",
        dataset={"path": "nobody/nothing", "revision": "none"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman" if kind == "STS" else "ndcg_at_10",
        prompt=prompt,
    )


def grades(query):
    """Two grades, so that the gains matter: the query's own entry, and its neighbours, of the same module."""
    return {query: 2, query + 1: 1, query + 2: 1}


class StandardLibrary(AbsTaskRetrieval):
    metadata = described("StandardLibrary", "Retrieval", {"query": FIND})

    def load_data(self, num_proc=None, **kwargs):
        relevant = {
            f"q{query}": {f"d{place}": grade for place, grade in grades(query).items()} for query in range(len(QUERIES))
        }
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_list(
                        [{"id": f"d{place}", "title": "", "text": text} for place, text in enumerate(DOCUMENTS)]
                    ),
                    "queries": Dataset.from_list(
                        [{"id": f"q{place}", "text": text} for place, text in enumerate(QUERIES)]
                    ),
                    "relevant_docs": relevant,
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


def blend(left, right, share):
    """The first share of one text's words, then as many of another's as it takes."""
    words = left.split()
    kept = round(share * len(words))
    return " ".join([*words[:kept], *right.split()[: len(words) - kept]])


# No pair of equal texts: their cosines are 1 but for rounding, which would rank them.
SHARES = [(place % 5) / 5 for place in range(len(QUERIES))]
PAIRS = [(text, blend(text, QUERIES[place - 1], SHARES[place])) for place, text in enumerate(QUERIES)]


class SimilarDescriptions(AbsTaskSTS):
    metadata = described("SimilarDescriptions", "STS", SIMILAR)

    def load_data(self, num_proc=None, **kwargs):
        first, second = zip(*PAIRS, strict=True)
        scores = [5 * share for share in SHARES]
        self.dataset = {
            "test": Dataset.from_dict({"sentence1": list(first), "sentence2": list(second), "score": scores})
        }
        self.data_loaded = True


TASKS = (StandardLibrary, SimilarDescriptions)


class Recorder:
    """An encoder, and what it was given."""

    def __init__(self, encoder):
        self.encoder, self.calls = encoder, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def encode_queries(self, texts, *, instruction=None, show_progress=False):
        self.calls.append(("query", list(texts), instruction))
        return self.encoder.encode_queries(texts, instruction=instruction, show_progress=show_progress)

    def encode_documents(self, texts, *, instruction=None, show_progress=False):
        self.calls.append(("document", list(texts), instruction))
        return self.encoder.encode_documents(texts, instruction=instruction, show_progress=show_progress)


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dtype="float32", device="cpu")


def all_scores(model, task):
    """Every number that MTEB computes."""
    kwargs = {"batch_size": 32, "show_progress_bar": False}
    result = mteb.evaluate(model, task, cache=None, encode_kwargs=kwargs, co2_tracker=False, show_progress_bar=False)
    return result.task_results[0].scores["test"][0]


def test_scores_are_those_of_a_few_independent_lines(encoder, tmp_path):
    report = evaluate(MTEBEncoder(encoder), [task() for task in TASKS], tmp_path)
    documents = encoder.encode_documents(DOCUMENTS)
    queries = encoder.encode_documents([as_query(text, FIND) for text in QUERIES])
    gains = []
    for query, ranking in enumerate(np.argsort(-(queries @ documents.T), axis=1)[:, :10]):
        found = sum(grades(query).get(int(place), 0) / np.log2(rank + 2) for rank, place in enumerate(ranking))
        gains.append(found / (2 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4)))
    # MTEB rounds the measures of retrieval to five digits.
    assert report.tasks[0].score == pytest.approx(100 * round(np.mean(gains), 5), abs=1e-6)
    left, right = (
        encoder.encode_documents([as_query(text, SIMILAR) for text in side]) for side in zip(*PAIRS, strict=True)
    )
    expected = spearmanr((left * right).sum(axis=1), SHARES).statistic
    assert report.tasks[1].score == pytest.approx(100 * expected, abs=1e-6)
    assert [(task.task, task.type, task.metric) for task in report.tasks] == [
        ("StandardLibrary", "Retrieval", "ndcg_at_10"),
        ("SimilarDescriptions", "STS", "cosine_spearman"),
    ]
    assert report.measures == []
    assert report.tasks[0].score > 20
    assert report.tasks[1].score > 50


def test_scores_are_those_of_mtebs_own_wrapper(encoder):
    model = MTEBEncoder(encoder)
    theirs = q3e_instruct_loader(str(TINY_FOLDER), None, device="cpu", model_kwargs={"dtype": torch.float32})
    theirs.mteb_model_meta = model.mteb_model_meta
    for task in TASKS:
        expected, found = all_scores(theirs, task()), all_scores(model, task())
        assert found.keys() == expected.keys()
        for name, score in expected.items():
            assert found[name] == pytest.approx(score, abs=1e-6, nan_ok=True) or isinstance(score, (str, list)), name


def test_instructions_are_those_of_mtebs_own_wrapper_where_mteb_has_them(encoder):
    model, compared = MTEBEncoder(encoder), 0
    for benchmark in PUBLISHED:
        for task in benchmark_tasks(benchmark)[1]:
            about = task.metadata
            asymmetric = "Retrieval" in about.type or "Reranking" in about.type
            assert model.instruction(about, PromptType.document) is None
            if about.prompt:
                side = PromptType.query if asymmetric else None
                prompt = instruction_template(model.get_instruction(about, side), side)
                assert prompt == as_query("", model.instruction(about, side))
                compared += 1
    assert compared > 70


@pytest.mark.parametrize(
    ("kind", "side", "prompt", "task"),
    [
        ("STS", None, None, INSTRUCTIONS["semantic_similarity"]),
        ("STS", None, SIMILAR, SIMILAR),
        ("PairClassification", None, None, INSTRUCTIONS["semantic_similarity"]),
        ("Summarization", None, None, INSTRUCTIONS["semantic_similarity"]),
        ("Classification", None, None, INSTRUCTIONS["classification"]),
        ("MultilabelClassification", None, None, INSTRUCTIONS["classification"]),
        ("Clustering", None, None, INSTRUCTIONS["clustering"]),
        ("BitextMining", None, None, INSTRUCTIONS["bitext"]),
        ("Retrieval", PromptType.query, None, INSTRUCTIONS["web_search"]),
        ("Retrieval", PromptType.query, {"query": FIND}, FIND),
        ("Retrieval", PromptType.query, FIND, FIND),
        ("Retrieval", PromptType.document, {"query": FIND}, None),
        ("Retrieval", PromptType.document, FIND, None),
        ("Reranking", PromptType.query, None, INSTRUCTIONS["web_search"]),
        ("Reranking", PromptType.document, FIND, None),
        ("InstructionReranking", PromptType.document, None, None),
    ],
)
def test_what_a_text_is_read_under(encoder, kind, side, prompt, task):
    about, texts = described("Some", kind, prompt), QUERIES[:3]
    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=2)
    found = MTEBEncoder(encoder).encode(
        loader, task_metadata=about, hf_split="test", hf_subset="default", prompt_type=side
    )
    expected = encoder.encode_documents(texts if task is None else [as_query(text, task) for text in texts])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_instruction_by_the_tasks_name_comes_before_the_types(encoder):
    model = MTEBEncoder(encoder)
    for name, instruction in (("CosQA", "code_search"), ("FEVERHardNegatives", "fact_checking")):
        about = mteb.get_task(name).metadata
        assert about.prompt is None
        assert model.instruction(about, PromptType.query) == INSTRUCTIONS[instruction]


def test_given_prompts_come_first_and_may_be_for_documents_too(encoder, tmp_path):
    (tmp_path / "prompts.json").write_text(
        json.dumps({"SimilarDescriptions": "Say what is alike", "StandardLibrary": {"query": "Q q", "passage": "P p"}})
    )
    plain, model = MTEBEncoder(encoder), MTEBEncoder(encoder, read_task_prompts(tmp_path / "prompts.json"))
    assert model.instruction(SimilarDescriptions.metadata) == "Say what is alike"
    assert model.instruction(StandardLibrary.metadata, PromptType.query) == "Q q"
    assert model.instruction(StandardLibrary.metadata, PromptType.document) == "P p"
    # Results under other prompts must never be taken for these.
    assert model.mteb_model_meta.revision != plain.mteb_model_meta.revision


@pytest.mark.parametrize("none", ["none", "", {"query": "none"}, {"query": "", "passage": "none"}])
def test_a_prompt_of_none_is_none_and_not_mteb_s(none):
    # One whose own instruction is not to be read either.
    encoder = Qwen3Encoder("tiny", dtype="float32", device="cpu", query_instruction="legal")
    model = MTEBEncoder(encoder, {"StandardLibrary": none})
    loader = DataLoader(Dataset.from_dict({"text": QUERIES[:3]}))
    for side in PromptType.query, PromptType.document:
        found = model.encode(
            loader, task_metadata=StandardLibrary.metadata, hf_split="test", hf_subset="default", prompt_type=side
        )
        np.testing.assert_allclose(found, encoder.encode_documents(QUERIES[:3]), atol=1e-6)


@pytest.mark.parametrize("prompt", ["web_serach", {"query": "web_serach"}, {"passage": "web_serach"}])
def test_a_prompt_that_is_misspelt_is_refused_before_any_work(encoder, prompt):
    with pytest.raises(ValueError, match="the prompt of STS12: unknown instruction 'web_serach': did you mean 'web_s"):
        MTEBEncoder(encoder, {"STS12": prompt})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"STS12": 1}', "STS12 must have a sentence"),
        ('{"STS12": {"questions": "Q q"}}', "STS12 must have a sentence"),
    ],
)
def test_prompts_that_are_not(tmp_path, content, message):
    (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_task_prompts(tmp_path / "prompts.json")


def test_the_encoder_gets_all_texts_at_once_and_both_sides_of_a_symmetric_task_their_instruction(encoder, tmp_path):
    recorder = Recorder(encoder)
    evaluate(MTEBEncoder(recorder), [task() for task in TASKS], tmp_path)
    first, second = map(list, zip(*PAIRS, strict=True))
    assert recorder.calls == [
        ("query", QUERIES, FIND),
        ("document", DOCUMENTS, None),
        ("query", first, SIMILAR),
        ("query", second, SIMILAR),
    ]


def test_vectors_in_another_precision_are_refused(encoder):
    loader = DataLoader(Dataset.from_dict({"text": QUERIES[:1]}))
    with pytest.raises(ValueError, match="vectors are float32, got precision='int8'"):
        MTEBEncoder(encoder).encode(
            loader, task_metadata=SimilarDescriptions.metadata, hf_split="", hf_subset="", precision="int8"
        )


class Unreachable(SimilarDescriptions):
    # Of a private data set MTEB says only in a warning that it is not there.
    metadata = described("Unreachable", "STS").model_copy(update={"is_public": False})

    def load_data(self, num_proc=None, **kwargs):
        raise DatasetNotFoundError("no access")


def test_a_run_goes_on_where_it_was_and_encodes_nothing_again(encoder, tmp_path):
    recorder, tasks = Recorder(encoder), [SimilarDescriptions(), Unreachable()]
    with pytest.raises(DatasetError, match=r"nobody/nothing \(revision none\) of the task Unreachable .*: no access"):
        evaluate(MTEBEncoder(recorder), tasks, tmp_path)
    assert len(recorder.calls) == 2
    tasks[1] = StandardLibrary()
    before = evaluate(MTEBEncoder(recorder), tasks, tmp_path)
    assert [call[0] for call in recorder.calls] == ["query", "query", "query", "document"]
    assert evaluate(MTEBEncoder(recorder), [task() for task in TASKS], tmp_path).tasks == before.tasks[::-1]
    assert len(recorder.calls) == 4
    # Other vectors, other results.
    smaller = Recorder(encoder.replaced(dimensions=32))
    assert evaluate(MTEBEncoder(smaller), [SimilarDescriptions()], tmp_path).tasks[0] != before.tasks[0]
    assert len(smaller.calls) == 2


def test_an_error_of_the_encoder_is_not_called_one_of_the_data(encoder, tmp_path):
    with pytest.raises(ValueError, match="max_tokens=40"):
        evaluate(MTEBEncoder(encoder.replaced(max_tokens=40, long_text="error")), [StandardLibrary()], tmp_path)


def test_a_remote_encoder_has_the_same_scores(encoder, tmp_path):
    with serving(Model(TINY_FOLDER)) as server, RemoteEncoder(server.url, model="tiny") as remote:
        found = evaluate(MTEBEncoder(remote), [SimilarDescriptions()], tmp_path / "remote")
    expected = evaluate(MTEBEncoder(encoder), [SimilarDescriptions()], tmp_path / "local")
    assert found.tasks[0].score == pytest.approx(expected.tasks[0].score, abs=1e-3)
    assert found.revision != expected.revision


def test_what_mteb_is_told_of_tiny(encoder):
    meta = MTEBEncoder(encoder.replaced(dimensions=64)).mteb_model_meta
    assert isinstance(MTEBEncoder(encoder), mteb.EncoderProtocol)
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("local/tiny", 64, 32768)
    assert meta.revision == f"{encoder.replaced(dimensions=64).fingerprint}.float32"
    assert meta.n_parameters == sum(weight.numel() for weight in torch.nn.Module.parameters(_tiny()))
    assert (meta.license, meta.open_weights, meta.use_instructions) == ("apache-2.0", True, True)
    assert (meta.similarity_fn_name.value, meta.languages, meta.modalities) == ("cosine", ["eng-Latn"], ["text"])
    again = meta.load_model()
    assert again.mteb_model_meta.revision == meta.revision
    np.testing.assert_array_equal(
        again.encoder.encode_documents(["x"]), encoder.replaced(dimensions=64).encode_documents(["x"])
    )


def _tiny():
    from transformers import AutoModel

    return AutoModel.from_pretrained(TINY_FOLDER)


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_what_mteb_is_told_of_the_official_models(size, tmp_path):
    commit, spec = "0123456789abcdef" * 2 + "01234567", MODELS[size]
    repository = tmp_path / f"models--{spec.hub_id.replace('/', '--')}"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 1}')
    encoder = Qwen3Encoder(size, dimensions=256, cache_folder=tmp_path, local_files_only=True, quantization="int8")
    meta, theirs = MTEBEncoder(encoder).mteb_model_meta, mteb.get_model_meta(spec.hub_id)
    assert meta.name == spec.hub_id
    assert commit[:12] in meta.revision
    assert meta.revision.endswith(f"{encoder.dtype}.int8")
    assert (meta.embed_dim, meta.max_tokens) == (256, spec.context)
    for name in ("n_parameters", "license", "languages", "open_weights", "framework", "training_datasets", "reference"):
        assert getattr(meta, name) == getattr(theirs, name)
    assert theirs.embed_dim == spec.max_dimensions
    assert json.loads(json.dumps(meta.to_dict()["loader_kwargs"]))["settings"]["dimensions"] == 256


def test_the_published_scores_agree_with_each_other():
    for benchmark, models in PUBLISHED.items():
        types = {task.metadata.type for task in benchmark_tasks(benchmark)[1]}
        for scores in models.values():
            by_type = {kind: score for kind, score in scores.items() if not kind.startswith("Mean")}
            if by_type:
                assert by_type.keys() == types
                assert np.mean(list(by_type.values())) == pytest.approx(scores["Mean(TaskType)"], abs=0.02)
    # The six figures of `models` are six columns of one table; only the first is there under the same name.
    columns = ("Mean(Task)", "STS", "Mean(TaskType)", "BitextMining", "Classification", "Clustering")
    for size in ("4B", "8B"):
        assert list(MODELS[size].scores.values()) == [PUBLISHED[MULTILINGUAL][size][name] for name in columns]


@pytest.fixture(scope="module")
def made_up():
    """A score for every split and language of the English benchmark, and for some that it does not ask for."""
    random, scores = np.random.default_rng(0), {}
    for task in benchmark_tasks(ENGLISH)[1]:
        names = {"test": [*task.hf_subsets, "another"], "validation": task.hf_subsets}
        scores[task.metadata.name] = {
            split: [
                {"hf_subset": subset, "languages": ["eng-Latn"], "main_score": round(float(random.random()), 5)}
                for subset in subsets
            ]
            for split, subsets in names.items()
        }
    return scores


@pytest.fixture
def results(tmp_path, made_up):
    """A folder with the made-up results of a model."""

    def write(meta):
        cache = mteb.ResultCache(tmp_path)
        for task in benchmark_tasks(ENGLISH)[1]:
            result = TaskResult(
                dataset_revision=task.metadata.revision,
                task_name=task.metadata.name,
                mteb_version=mteb.__version__,
                scores=made_up[task.metadata.name],
                evaluation_time=1,
                kg_co2_emissions=None,
            )
            cache.save_to_cache(result, meta)
        return tmp_path

    return write


def expected_means(made_up):
    """Means of the made-up results, a second time."""
    scores, types = {}, {}
    for task in benchmark_tasks(ENGLISH)[1]:
        asked = [row["main_score"] for row in made_up[task.metadata.name]["test"] if row["hf_subset"] != "another"]
        scores[task.metadata.name] = 100 * np.mean(asked)
        types.setdefault(task.metadata.type, []).append(scores[task.metadata.name])
    by_type = {kind: np.mean(found) for kind, found in types.items()}
    return {"Mean(Task)": np.mean([*scores.values()]), "Mean(TaskType)": np.mean([*by_type.values()]), **by_type}


def test_means_of_a_benchmark_beside_the_published_ones(results, made_up):
    model = MTEBEncoder(RemoteEncoder("http://nobody.invalid/v1", model="4B"))
    folder = results(model.mteb_model_meta)
    name, tasks = benchmark_tasks(ENGLISH)
    found = {measure.name: measure for measure in evaluate(model, tasks, folder, benchmark=name).measures}
    expected = expected_means(made_up)
    assert found.keys() == expected.keys() == PUBLISHED[ENGLISH]["4B"].keys()
    for mean, score in expected.items():
        assert found[mean].score == pytest.approx(score, abs=1e-9)
        assert found[mean].published == PUBLISHED[ENGLISH]["4B"][mean]
        assert found[mean].listed == (MODELS["4B"].scores["MTEB-R"] if mean == "Retrieval" else None)
    # Only what all tasks of a benchmark or type were run for has a mean.
    name, retrieval = benchmark_tasks("MTEB-R")
    assert len(retrieval) == 10
    [measure] = evaluate(model, retrieval, folder, benchmark=name).measures
    assert measure == found["Retrieval"]
    assert evaluate(model, retrieval[1:], folder, benchmark=name).measures == []


def test_the_command_prints_means_and_published_scores(results, made_up, tmp_path):
    folder = results(MTEBEncoder(Qwen3Encoder("tiny")).mteb_model_meta)
    arguments = ["eval", "--benchmark", ENGLISH, "--output", str(folder), "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    expected = expected_means(made_up)
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in done.output.splitlines() if "│" in line}
    assert rows == {name: f"{score:.2f}" for name, score in expected.items()}
    report = json.loads((tmp_path / "out.json").read_text())
    assert {row["name"]: row["score"] for row in report["measures"]} == pytest.approx(expected)
    assert len(report["tasks"]) == 41
    done = CliRunner().invoke(app, ["eval", "--tasks", "STS12,BIOSSES", "--output", str(folder)])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines() if "cosine_spearman" in line] == ["STS12", "BIOSSES"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "MLDR"], "of the task MultiLongDocRetrieval cannot be had: ConnectionError"),
        (["--tasks", "CQADupstackRetrieval"], "of the task CQADupstackAndroidRetrieval cannot be had: ConnectionError"),
    ],
)
def test_the_command_names_a_data_set_that_cannot_be_had(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Not those that this machine may have.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "data")
    arguments = ["eval", *arguments, "--dimensions", "64", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert message in done.output
    assert "the data set mteb/" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "MTEB(engl, v2)"], "Did you mean: MTEB(eng, v2)? Those with published scores: MTEB(Multi"),
        (["--benchmark", "MTEB-R", "--tasks", "STS12"], "there is no task 'STS12' in the benchmark: ArguAna"),
        (["--tasks", "ArguAma"], "there is no task 'ArguAma'"),
        (["--tasks", "STS12", "--dimensions", "64,32"], "must be one number for MTEB, got '64,32'"),
        (["--tasks", "STS12", "--dimensions", "512"], "dimensions must be between 32 and 256"),
        (["--tasks", "STS12", "--model", "tinny"], "did you mean 'tiny'"),
        (["--tasks", "STS12", "--instruction", "web_search"], "leave out --corpus"),
        (["--tasks", "STS12", "--precisions", "int8"], "leave out --corpus"),
        (["--tasks", "STS12", "--task-prompts", "no.json"], "no.json"),
        (["--tasks", "STS12", "--output", __file__], "File exists"),
        (["--output", "folder"], "go with --benchmark or --tasks"),
    ],
)
def test_the_command_refuses(arguments, message):
    done = CliRunner().invoke(app, ["eval", *arguments], env={"COLUMNS": "1000"})
    assert done.exit_code == 2
    assert message in done.output


def test_the_command_without_mteb_names_the_pip_command():
    code = (
        "import sys; sys.modules['mteb'] = None; from qwen3_embed_integrations.cli import app; "
        "app(['eval', '--benchmark', 'MLDR', '--model', 'not even looked at'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "pip install 'qwen3-embed-integrations[eval]'" in " ".join(done.stderr.replace("│", " ").split())


def test_tasks_by_name_keep_their_order():
    assert [task.metadata.name for task in select_tasks(["STS13", "STS12", "STS13"])] == ["STS13", "STS12"]
    assert {task.metadata.type for task in benchmark_tasks("CMTEB-R")[1]} == {"Retrieval"}
    assert benchmark_tasks("MTEB(eng)")[0] == benchmark_tasks(ENGLISH)[0] == ENGLISH
    [mldr] = benchmark_tasks("MLDR")[1]
    assert (mldr.eval_splits, mldr.metadata.main_score, len(mldr.hf_subsets)) == (["test"], "ndcg_at_10", 13)
