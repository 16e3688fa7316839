"""MTEB (https://github.com/embeddings-benchmark/mteb, arXiv:2210.07316) over any encoder of this package."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

try:
    import mteb
    from mteb.abstasks.aggregated_task import AbsTaskAggregate
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise ImportError("the benchmarks of MTEB need mteb: pip install 'qwen3-embed-integrations[eval]'") from error

from qwen3_embed_integrations.encoder import ConfiguredEncoder, Qwen3Encoder, short_hash
from qwen3_embed_integrations.instructions import INSTRUCTIONS, resolve_instruction
from qwen3_embed_integrations.models import find_spec
from qwen3_embed_integrations.quality import NO_INSTRUCTION
from qwen3_embed_integrations.remote import RemoteEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from mteb.abstasks.abstask import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader

    from qwen3_embed_integrations.encoder import Encoder

TaskPrompt = str | Mapping[str, str]
"""An instruction for all texts of a task but its documents, or one for each side: "query", and "passage"."""

DEFAULT_INSTRUCTION = "web_search"

_BY_TYPE = {
    "BitextMining": "bitext",
    "Classification": "classification",
    "Clustering": "clustering",
    "MultilabelClassification": "classification",
    "PairClassification": "semantic_similarity",
    "STS": "semantic_similarity",
    "Summarization": "semantic_similarity",
}

# Tasks of the benchmarks in PUBLISHED whose metadata has no prompt, where an entry of INSTRUCTIONS says what they ask.
_BY_TASK = {
    "CQADupstackGamingRetrieval": "forum_duplicates",
    "CQADupstackUnixRetrieval": "forum_duplicates",
    "ClimateFEVERHardNegatives": "fact_checking",
    "CodeTransOceanContest": "code_to_code",
    "CodeTransOceanDL": "code_to_code",
    "CosQA": "code_search",
    "FEVERHardNegatives": "fact_checking",
    "HotpotQAHardNegatives": "multi_hop_question",
    "SyntheticText2SQL": "question_to_sql",
    "Touche2020Retrieval.v3": "argument",
}

# From Arrow to lists in large steps; the encoder groups by tokens, whatever this is.
_LOADER_BATCH = 1024

MEAN_TASK, MEAN_TYPE = "Mean(Task)", "Mean(TaskType)"

_MULTILINGUAL, _ENGLISH, _CHINESE, _CODE = "MTEB(Multilingual, v2)", "MTEB(eng, v2)", "MTEB(cmn, v1)", "MTEB(Code, v1)"

_LABELS = {
    "MMTEB": (_MULTILINGUAL, MEAN_TASK),
    "MTEB-Code": (_CODE, MEAN_TASK),
    "CMTEB-R": (_CHINESE, "Retrieval"),
    "MMTEB-R": (_MULTILINGUAL, "Retrieval"),
    "MTEB-R": (_ENGLISH, "Retrieval"),
    "MLDR": ("MLDR", MEAN_TASK),
}
"""What the names in `models.BENCHMARKS` stand for: R is for a benchmark's retrieval tasks, in the report and here."""


def _table(measures: str, scores: Mapping[str, str]) -> Mapping[str, Mapping[str, float]]:
    names = measures.split()
    return {model: dict(zip(names, map(float, row.split()), strict=True)) for model, row in scores.items()}


PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        _MULTILINGUAL: _table(
            f"{MEAN_TASK} {MEAN_TYPE} BitextMining Classification Clustering InstructionReranking "
            "MultilabelClassification PairClassification Reranking Retrieval STS",
            {
                "0.6B": "64.33 56.00 72.22 66.83 52.33  5.09 24.59 80.83 61.41 64.64 76.17",
                "4B": "69.45 60.86 79.36 72.33 57.15 11.56 26.77 85.05 65.08 69.60 80.86",
                "8B": "70.58 61.69 80.89 74.00 57.65 10.06 28.66 86.40 65.63 70.88 81.08",
            },
        ),
        _ENGLISH: _table(
            f"{MEAN_TASK} {MEAN_TYPE} Classification Clustering PairClassification Reranking Retrieval STS "
            "Summarization",
            {
                "0.6B": "70.70 64.88 85.76 54.05 84.37 48.18 61.83 86.57 33.43",
                "4B": "74.60 68.10 89.84 57.51 87.01 50.76 68.46 88.72 34.39",
                "8B": "75.22 68.71 90.43 58.57 87.52 51.56 69.44 88.58 34.83",
            },
        ),
        _CHINESE: _table(
            f"{MEAN_TASK} {MEAN_TYPE} Classification Clustering PairClassification Reranking Retrieval STS",
            {
                "0.6B": "66.33 67.45 71.40 68.74 76.42 62.58 71.03 54.52",
                "4B": "72.27 73.51 75.46 77.89 83.34 66.05 77.03 61.26",
                "8B": "73.84 75.00 76.97 80.08 84.23 66.99 78.21 63.53",
            },
        ),
        _CODE: _table(MEAN_TASK, {"0.6B": "75.41"}),
        "MLDR": _table(MEAN_TASK, {"0.6B": "50.26"}),
    }
)
"""The authors' scores in percent, by benchmark, model and measure: mean over tasks, mean over task types, each type.

Source: the tables in the README of the official repository (https://github.com/QwenLM/Qwen3-Embedding), where code and
MLDR are given for the 0.6B only, in the table of the rerankers.
"""


class DatasetError(RuntimeError):
    """A task's data set could not be fetched or read."""


class MTEBEncoder(AbsEncoder):
    """An encoder of this package as MTEB takes it, for `mteb.evaluate` and all that is built on it.

    Texts of symmetric tasks (similarity, clustering, classification, bitext) and queries get an instruction: the one in
    `task_prompts`, else the prompt in the task's metadata, else the nearest entry of `INSTRUCTIONS`, which is
    "web_search" for retrieval. Documents get none, as in MTEB's own wrapper of these models. The dimensions are the
    encoder's, and it gets all texts at once and groups them itself, whatever batch size MTEB is given.

    Args:
        encoder: local or remote.
        task_prompts: instructions by the name of the task, which go before MTEB's: a name in `INSTRUCTIONS`, a
            sentence, or "none" or an empty string for none; or a dictionary of these with "query", and "passage" or
            "document" where documents are to have one.

    Raises:
        ValueError: an instruction is a single word but not a name; the message has its task.

    Example:
        >>> import mteb
        >>> from qwen3_embed_integrations import Qwen3Encoder
        >>> from qwen3_embed_integrations.evaluation import MTEBEncoder
        >>> model = MTEBEncoder(Qwen3Encoder("4B"))
        >>> mteb.evaluate(model, mteb.get_tasks(["SciFact"]))  # doctest: +SKIP
    """

    def __init__(self, encoder: Encoder, task_prompts: Mapping[str, TaskPrompt] | None = None) -> None:
        self.encoder = encoder
        self.task_prompts = dict(task_prompts or {})
        for task, prompt in self.task_prompts.items():
            for sentence in prompt.values() if isinstance(prompt, Mapping) else [prompt]:
                try:
                    if _given(sentence) is not None:
                        resolve_instruction(sentence)
                except ValueError as error:
                    raise ValueError(f"the prompt of {task}: {error}") from error

    @cached_property
    def mteb_model_meta(self) -> ModelMeta:  # type: ignore[override]  # there a variable, here made by the first use
        """What MTEB files results under; the revision is the encoder's fingerprint and all else that changes scores."""
        return _model_meta(self.encoder, self.task_prompts)

    def instruction(self, task_metadata: TaskMetadata, prompt_type: PromptType | None = None) -> str | None:
        """Choose what the texts of a task are read under.

        Args:
            task_metadata: of the task.
            prompt_type: the side of an asymmetric task; None in a symmetric one.

        Returns:
            The task sentence, or None: bare texts, but for documents, which get what the encoder puts before them.
        """
        given = self.task_prompts.get(task_metadata.name)
        if prompt_type == PromptType.document:
            return _given(given.get("passage") or given.get("document")) if isinstance(given, Mapping) else None
        if isinstance(given, Mapping):
            given = given.get("query")
        if given is not None:
            return _given(given)
        prompt: Any = task_metadata.prompt
        sentence: str | None = prompt.get("query") if isinstance(prompt, Mapping) else prompt
        if sentence:
            return sentence
        name = _BY_TASK.get(task_metadata.name) or _BY_TYPE.get(task_metadata.type, DEFAULT_INSTRUCTION)
        return INSTRUCTIONS[name]

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embed all texts of a loader, as MTEB's protocol has it.

        Args:
            inputs: batches with a list of texts under "text".
            task_metadata: of the task, for the instruction.
            hf_split: not needed.
            hf_subset: not needed.
            prompt_type: whether these are queries or documents; None in a symmetric task.
            **kwargs: MTEB's `show_progress_bar`, and `batch_size`, which changes nothing.

        Returns:
            float32 array, shape (n, dimensions), unit length, in the order of the texts.

        Raises:
            ValueError: `precision` is asked for, which is not how vectors are made smaller here.
        """
        if kwargs.get("precision", "float32") != "float32":
            raise ValueError(f"vectors are float32, got precision={kwargs['precision']!r}: see quantization.Quantizer")
        texts = [text for batch in inputs for text in batch["text"]]
        instruction = self.instruction(task_metadata, prompt_type)
        show_progress: bool = kwargs.get("show_progress_bar", False)
        if prompt_type == PromptType.document:
            return self.encoder.encode_documents(texts, instruction=instruction, show_progress=show_progress)
        return self.encoder.encode_queries(texts, instruction=instruction or "", show_progress=show_progress)


def _given(instruction: str | None) -> str | None:
    return None if instruction in ("", NO_INSTRUCTION) else instruction


def _model_meta(encoder: Encoder, task_prompts: Mapping[str, TaskPrompt]) -> ModelMeta:
    model = encoder.settings.model if isinstance(encoder, (Qwen3Encoder, RemoteEncoder)) else type(encoder).__name__
    space = [encoder.fingerprint]
    facts: dict[str, Any] = {}
    if isinstance(encoder, Qwen3Encoder):
        space += [encoder.dtype, *filter(None, [encoder.settings.quantization])]
    elif isinstance(encoder, RemoteEncoder):
        facts["framework"] = ["API"]
    if task_prompts:
        space.append(f"prompts-{short_hash(json.dumps(task_prompts, sort_keys=True))}")
    if isinstance(encoder, ConfiguredEncoder):
        facts["loader"] = partial(_load, type(encoder), task_prompts)
        facts["loader_kwargs"] = {"settings": encoder.settings.to_dict()}
    facts |= {
        "revision": ".".join(space),
        "max_tokens": encoder.max_tokens,
        "embed_dim": encoder.dimensions,
        "similarity_fn_name": ScoringFunction.COSINE,
        "use_instructions": True,
        "output_dtypes": None,
    }
    return _known_meta(model).model_copy(update=facts)


def _known_meta(model: str) -> ModelMeta:
    """Give MTEB's facts about an official model, or what can be told of another one."""
    spec = find_spec(model)
    if spec and spec.hub_id:
        return mteb.get_model_meta(spec.hub_id)
    facts: dict[str, Any] = {"name": model if "/" in model else f"local/{model}"}
    folder = Path(spec.source if spec else model)
    if folder.is_dir():
        facts = {
            "name": f"local/{folder.name}",
            "n_parameters": _parameters(folder),
            "framework": ["Sentence Transformers", "PyTorch", "Transformers", "safetensors"],
        }
    if spec:
        facts |= {"languages": ["eng-Latn"], "license": spec.license.lower(), "open_weights": True}
    meta: ModelMeta = ModelMeta.create_empty(facts)
    return meta


def _load(
    kind: Callable[..., Encoder],
    task_prompts: Mapping[str, TaskPrompt],
    name: str,
    revision: str,
    settings: Mapping[str, Any],
) -> MTEBEncoder:
    """Make the encoder of a `ModelMeta` again, as MTEB's loader; the settings tell all that name and revision do."""
    return MTEBEncoder(kind(**settings), task_prompts)


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as tensors:
            names = tensors.keys()
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return total


def read_task_prompts(path: Path) -> dict[str, TaskPrompt]:
    """Read instructions by task, in the layout of the authors' evaluation/task_prompts.json.

    Args:
        path: a JSON object; a task's name leads to a sentence, or to an object with "query" and perhaps "passage".

    Returns:
        What `MTEBEncoder` takes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not as described; the message names the task.
    """
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(prompts, dict):
        raise ValueError(f"{path} must be a JSON object, instructions by the name of the task")
    for task, prompt in prompts.items():
        sides = prompt if isinstance(prompt, dict) else {"query": prompt}
        if not set(sides) <= {"query", "passage", "document"} or not all(
            isinstance(text, str) for text in sides.values()
        ):
            raise ValueError(f'{path}: {task} must have a sentence, or an object with "query" and "passage"')
    return prompts


@dataclass(frozen=True)
class TaskScore:
    """A task's result.

    Attributes:
        task: its name in MTEB.
        type: of the task.
        metric: MTEB's main one for the task.
        score: mean over the task's splits and languages, in percent.
    """

    task: str
    type: str
    metric: str
    score: float


@dataclass(frozen=True)
class Measure:
    """A mean over tasks of a benchmark, all of which were run.

    Attributes:
        name: "Mean(Task)", "Mean(TaskType)", or a type of task, as MTEB has them.
        score: in percent.
        published: the authors' score of the same model, or None where they give none.
        listed: the score in `models.MODELS` under this measure's label there, or None.
    """

    name: str
    score: float
    published: float | None
    listed: float | None


@dataclass(frozen=True)
class Report:
    """All that was measured.

    Attributes:
        benchmark: its name, or None where single tasks were run.
        model: that embedded the texts, by MTEB's name for it.
        revision: of the model, with all else that changes scores.
        dimensions: of the vectors.
        mteb: version of MTEB.
        tasks: in the order of the benchmark.
        measures: means over complete sets of tasks.
    """

    benchmark: str | None
    model: str
    revision: str
    dimensions: int
    mteb: str
    tasks: Sequence[TaskScore]
    measures: Sequence[Measure]

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return asdict(self)


def benchmark_tasks(benchmark: str) -> tuple[str, list[AbsTask]]:
    """Find the tasks of a benchmark.

    Args:
        benchmark: MTEB's name, such as "MTEB(Multilingual, v2)"; "MLDR"; or a name in `models.BENCHMARKS`.

    Returns:
        MTEB's name of the benchmark, and the tasks; those of retrieval only where the name ends in "-R".

    Raises:
        ValueError: MTEB has no such benchmark.
    """
    name, measure = _LABELS.get(benchmark, (benchmark, MEAN_TASK))
    name, tasks = _all_tasks(name)
    return name, [task for task in tasks if measure in (MEAN_TASK, task.metadata.type)]


def _all_tasks(benchmark: str) -> tuple[str, list[AbsTask]]:
    if benchmark == "MLDR":
        return benchmark, [mteb.get_task("MultiLongDocRetrieval", eval_splits=["test"])]
    try:
        found = mteb.get_benchmark(benchmark)
    except KeyError as error:
        names = ", ".join([*PUBLISHED, *(label for label in _LABELS if label not in PUBLISHED)])
        raise ValueError(f"unknown benchmark: {error.args[0]} Those with published scores: {names}") from error
    # Not the alias that it may have been asked for by.
    return found.name, list(found.tasks)


def select_tasks(names: Sequence[str], tasks: Sequence[AbsTask] | None = None) -> list[AbsTask]:
    """Find tasks by name.

    Args:
        names: MTEB's.
        tasks: where to look; None for all that MTEB has.

    Returns:
        The tasks, in the order of the names, each once.

    Raises:
        ValueError: there is no such task; the message has the first name that is not there.
    """
    known = None if tasks is None else {task.metadata.name: task for task in tasks}
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(mteb.get_task(name) if known is None else known[name])
        except KeyError as error:
            hint = f" in the benchmark: {', '.join(known)}" if known is not None else f": {error.args[0]}"
            raise ValueError(f"there is no task {name!r}{hint}") from error
    return found


def evaluate(
    model: MTEBEncoder,
    tasks: Sequence[AbsTask],
    output: Path,
    *,
    benchmark: str | None = None,
    show_progress: bool = False,
    on_score: Callable[[TaskScore], None] | None = None,
) -> Report:
    """Run tasks, but for those whose results lie in a folder, and give the means beside the published ones.

    A task's result is kept as soon as it is there, so that a run that was stopped goes on where it was.

    Args:
        model: the encoder.
        tasks: MTEB's, of a benchmark or any.
        output: folder of MTEB's own layout, a `ResultCache`; made where it is not there.
        benchmark: MTEB's name of the benchmark that the tasks are of, or "MLDR", for the means; None for no means.
        show_progress: whether to draw a progress bar while texts are embedded.
        on_score: called with each task's score, once it is there.

    Returns:
        What was measured.

    Raises:
        DatasetError: a task's data could not be had; the results before it are kept.
    """
    cache = mteb.ResultCache(output)
    scores = []
    for task in tasks:
        score = _run(model, task, cache, show_progress)
        scores.append(score)
        if on_score is not None:
            on_score(score)
    meta = model.mteb_model_meta
    return Report(
        benchmark=benchmark,
        model=str(meta.name),
        revision=str(meta.revision),
        dimensions=model.encoder.dimensions,
        mteb=mteb.__version__,
        tasks=scores,
        measures=[] if benchmark is None else _measures(scores, benchmark, str(meta.name)),
    )


def _run(model: MTEBEncoder, task: AbsTask, cache: mteb.ResultCache, show_progress: bool) -> TaskScore:
    if isinstance(task, AbsTaskAggregate):
        for part in task.tasks:
            _run(model, part, cache, show_progress)
    metadata = task.metadata
    encode_kwargs: Any = {"batch_size": _LOADER_BATCH, "show_progress_bar": show_progress}
    try:
        results = mteb.evaluate(
            model,
            task,
            cache=cache,
            encode_kwargs=encode_kwargs,
            co2_tracker=False,
            show_progress_bar=False,
            # Otherwise a private data set that cannot be had is left out with a warning.
            public_only=False,
        )
    except Exception as error:
        if task.data_loaded or task.is_aggregate:
            raise
        source = f"{metadata.dataset['path']} (revision {metadata.dataset['revision']})"
        raise DatasetError(
            f"the data set {source} of the task {metadata.name} cannot be had: {type(error).__name__}: {error}"
        ) from error
    # A folder may hold splits and languages that other benchmarks ask for.
    result = results.task_results[0].validate_and_filter_scores(task)
    return TaskScore(metadata.name, metadata.type, metadata.main_score, 100 * float(result.get_score()))


def _measures(scores: Sequence[TaskScore], benchmark: str, model: str) -> list[Measure]:
    all_types = Counter(task.metadata.type for task in _all_tasks(benchmark)[1])
    by_type = {kind: [score.score for score in scores if score.type == kind] for kind in all_types}
    types = {kind: statistics.fmean(found) for kind, found in by_type.items() if len(found) == all_types[kind]}
    means = {}
    if len(types) == len(all_types):
        means = {MEAN_TASK: statistics.fmean(score.score for score in scores)}
        if len(types) > 1:
            means[MEAN_TYPE] = statistics.fmean(types.values())
    if len(all_types) > 1:
        means |= dict(sorted(types.items()))
    spec = find_spec(model)
    published = PUBLISHED.get(benchmark, {}).get(spec.name, {}) if spec else {}
    listed = {_LABELS[label]: score for label, score in spec.scores.items()} if spec else {}
    return [Measure(name, score, published.get(name), listed.get((benchmark, name))) for name, score in means.items()]
