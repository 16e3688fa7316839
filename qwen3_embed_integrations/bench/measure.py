"""The rounds: every engine in turn, so that what else the machine does hits all alike, each in its own process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import qwen3_embed_integrations
from qwen3_embed_integrations.bench.engines import (
    BATCH_SIZES,
    PEER_DTYPES,
    PEERS,
    THREADS,
    BenchEngine,
    LangChain,
    ThisPackage,
    make_peer,
)
from qwen3_embed_integrations.bench.random_model import default_folder, make
from qwen3_embed_integrations.encoder import Qwen3Encoder
from qwen3_embed_integrations.instructions import query_prompt
from qwen3_embed_integrations.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from qwen3_embed_integrations.models import ModelSpec

Result = TypeVar("Result")

SENTENCE = "retrieval of passages with embeddings from a large language model running on small machines in production"
INSTALL = "pip install 'qwen3-embed-integrations[bench]'"

# Short calls are repeated for this long: the first ones pay for what the engine before left in the caches.
_TURN_SECONDS = 1.0

# What fills a device: rows of a matrix product, and documents.
_LIMIT_ROWS = {"cpu": 1024, "cuda": 16_384}
_DOCUMENTS = {"cpu": 24, "cuda": 2000}

_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "langchain-huggingface",
    "llama-index-embeddings-huggingface",
    "haystack-ai",
    "sentence-transformers-haystack",
    "onnx",
    "onnxruntime",
)


@dataclass(frozen=True)
class Case:
    """Texts to embed, and how they come.

    Attributes:
        name: what the tables call it.
        texts: the texts, all different.
        prompt: what stands before each, or "" for documents.
        at_once: whether they come one by one from many threads, instead of together.
    """

    name: str
    texts: list[str]
    prompt: str = ""
    at_once: bool = False


@dataclass(frozen=True)
class Measurement:
    """One engine on one case.

    Attributes:
        case: the case's name.
        engine: the engine's name.
        dtype: that its matrix products ran in.
        batch_size: texts a batch, None where it is left to the tool.
        vectors: how many came back.
        cosine: mean over the texts of the cosine to the vectors of this package's first engine.
        rounds: seconds, one number a round.
        seconds: their median.
        of_limit: for documents, the fraction of the machine's matrix-product limit that was reached; None for queries,
            whose prompt is not always computed.
    """

    case: str
    engine: str
    dtype: str
    batch_size: int | None
    vectors: int
    cosine: float
    rounds: list[float]
    seconds: float
    of_limit: float | None


@dataclass(frozen=True)
class Report:
    """All that a benchmark found.

    Attributes:
        shape: of the model.
        machine: the processor's name, its threads, the system.
        packages: versions by name.
        cases: texts and tokens by the case's name.
        limits: floating-point or integer operations a second of a matrix product, by dtype, in the best round.
        measurements: one a case, engine and batch size.
        missing: by name, the pip command for each peer that is not installed.
    """

    shape: str
    machine: dict[str, Any]
    packages: dict[str, str]
    cases: dict[str, dict[str, int]]
    limits: dict[str, float]
    measurements: list[Measurement]
    missing: dict[str, str] = field(default_factory=dict)

    def best(self, case: str) -> list[Measurement]:
        """Give each engine at the batch size that was its fastest.

        Args:
            case: the case's name.

        Returns:
            One measurement an engine, in the order in which they ran.
        """
        found: dict[str, Measurement] = {}
        for measurement in self.measurements:
            if measurement.case == case:
                known = found.setdefault(measurement.engine, measurement)
                found[measurement.engine] = min(known, measurement, key=lambda item: item.seconds)
        return list(found.values())

    def ratios(self, case: str) -> dict[str, dict[str, float]]:
        """Say how many times as fast as each peer this package is.

        Args:
            case: the case's name.

        Returns:
            By engine of this package, by peer.
        """
        best = self.best(case)
        ours = [item for item in best if is_ours(item.engine)]
        peers = [item for item in best if not is_ours(item.engine)]
        return {item.engine: {peer.engine: peer.seconds / item.seconds for peer in peers} for item in ours}

    def to_dict(self) -> dict[str, Any]:
        """Give it all as plain values, with the ratios."""
        return {**asdict(self), "ratios": {case: self.ratios(case) for case in self.cases}}


def is_ours(engine: str) -> bool:
    """Say whether an engine's name is one of this package's."""
    return engine.startswith("this package")


def make_cases(short_documents: int, documents: int = _DOCUMENTS["cpu"]) -> list[Case]:
    """Make the texts, always the same.

    Args:
        short_documents: how many of 5 to 24 words there are in a case of their own; 0 for no such case.
        documents: how many of log-normal length there are.

    Returns:
        1 query and 32 queries of 8 words, together and at once, and the documents.
    """
    random = np.random.default_rng(0)
    words = SENTENCE.split()
    prompt = query_prompt("web_search")
    queries = [" ".join(random.choice(words, 8)) for _ in range(32)]
    lengths = random.lognormal(4.6, 0.7, documents).clip(10, 400)
    long = [" ".join(random.choice(words, int(length))) for length in lengths]
    cases = [
        Case("1 query", queries[:1], prompt),
        Case("32 queries", queries, prompt),
        Case(f"{documents:,} documents", long),
        Case(f"32 queries from {THREADS} threads", queries, prompt, at_once=True),
    ]
    if short_documents:
        # Numbered, so that no two are equal: equal texts would be computed once here and again by the peers.
        short = [f"{n} {' '.join(random.choice(words, random.integers(5, 25)))}" for n in range(short_documents)]
        cases.append(Case(f"{short_documents:,} short documents", short))
    return cases


def linear_weights(spec: ModelSpec) -> int:
    """Count the weights of the layers' matrix products: attention's four and the three of the feed-forward part.

    Args:
        spec: the model's shape.

    Returns:
        How many numbers, in all layers.
    """
    attention = spec.hidden_size * spec.head_dim * 2 * (spec.query_heads + spec.kv_heads)
    return spec.layers * (attention + 3 * spec.hidden_size * spec.ffn_size)


def run(
    shape: str,
    *,
    folder: Path | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 5,
    short_documents: int = 0,
    peer_dtype: str = "bfloat16",
    device: str = "cpu",
    on_progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Measure this package and its peers.

    Args:
        shape: "0.6B", "4B" or "tiny".
        folder: where the model and its ONNX export are, or go; None for a folder in the user's cache.
        peers: names in `PEERS`; None for all that run on the device.
        rounds: how often every engine has its turn.
        short_documents: how many short documents there are in a case of their own; 0 for no such case.
        peer_dtype: one of `PEER_DTYPES`, of the peers' weights; onnxruntime's are int8 always.
        device: "cpu" or "cuda".
        on_progress: is told what runs now.

    Returns:
        What was measured.

    Raises:
        ValueError: a peer, its type or the device is unknown or not to be used, or the folder has a model of another
            shape.
    """
    if device not in BATCH_SIZES:
        raise ValueError(f"device must be one of {', '.join(BATCH_SIZES)}, got {device!r}")
    on_device = [name for name, peer in PEERS.items() if device in peer.devices]
    for name in peers or ():
        if name not in PEERS:
            raise ValueError(f"unknown peer {name!r}: there are {', '.join(PEERS)}")
        if name not in on_device:
            raise ValueError(f"{name!r} is not measured on {device!r}: there are {', '.join(on_device)}")
    if peer_dtype not in PEER_DTYPES:
        raise ValueError(f"peer_dtype must be one of {', '.join(PEER_DTYPES)}, got {peer_dtype!r}")
    import torch

    from qwen3_embed_integrations.engine.engine import resolve_device

    resolve_device(device)
    folder = default_folder(shape) if folder is None else folder.expanduser()
    on_progress("writing the model")
    model = make(folder, shape, device=device)
    chosen = on_device if peers is None else peers
    missing = {peer: INSTALL for peer in chosen if not PEERS[peer].is_installed}
    cases = make_cases(short_documents, _DOCUMENTS[device])
    making: dict[str, Callable[[], BenchEngine]] = {"this package": partial(ThisPackage, model, None, device)}
    if device == "cpu":
        making["this package, int8"] = partial(ThisPackage, model, "int8", device)
    for peer in chosen:
        if peer not in missing:
            making[peer] = partial(make_peer, peer, model, cases[0].prompt, peer_dtype, device, folder)
    with ExitStack() as stack:
        engines = []
        for name, make_engine in making.items():
            on_progress(f"loading {name}")
            engines.append(stack.enter_context(Isolated(make_engine)))
        turns = [
            (case, engine, batch_size)
            for case in cases
            for engine in engines
            # Only LangChain's wrapper stands for those that have nothing to gain from callers at once.
            if not case.at_once or is_ours(engine.name) or engine.name == LangChain.name
            for batch_size in _batch_sizes(engine, case)
        ]
        dtypes = list(dict.fromkeys(["float32", "bfloat16", *(engine.dtype for engine in engines)]))
        limits: dict[str, list[float]] = {dtype: [] for dtype in dtypes}
        times: list[list[float]] = [[] for _ in turns]
        vectors: list[NDArray[np.float32]] = []
        for case, engine, batch_size in turns:
            on_progress(f"warm-up: {case.name}, {engine.name}")
            engine.call(_embed, case, case.texts[:THREADS], batch_size)
        for number in range(1, rounds + 1):
            for dtype in dtypes:
                limits[dtype].append(_matrix_limit(MODELS[shape], dtype, device))
            for index, (case, engine, batch_size) in enumerate(turns):
                on_progress(f"round {number} of {rounds}: {case.name}, {engine.name}")
                seconds, result = engine.call(_turn, case, batch_size)
                times[index].append(seconds)
                if number == 1:
                    vectors.append(result)
    count = Qwen3Encoder(model).count_tokens
    tokens = {case.name: sum(count([case.prompt + text for text in case.texts])) for case in cases}
    # The best round, since what else the machine does can only lower it.
    limit = {dtype: max(found) for dtype, found in limits.items()}
    operations = 2 * linear_weights(MODELS[shape])
    of_first = {turn[0].name: found for turn, found in zip(turns, vectors, strict=True) if turn[1] is engines[0]}
    measurements = []
    for (case, engine, batch_size), found, result in zip(turns, times, vectors, strict=True):
        median = statistics.median(found)
        measurements.append(
            Measurement(
                case=case.name,
                engine=engine.name,
                dtype=engine.dtype,
                batch_size=batch_size,
                vectors=len(result),
                cosine=_mean_cosine(result, of_first[case.name]),
                rounds=found,
                seconds=median,
                of_limit=None if case.prompt else operations * tokens[case.name] / median / limit[engine.dtype],
            )
        )
    return Report(
        shape=shape,
        machine={
            "processor": _processor(device),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        packages=_versions(),
        cases={case.name: {"texts": len(case.texts), "tokens": tokens[case.name]} for case in cases},
        limits=limit,
        measurements=measurements,
        missing=missing,
    )


class Isolated:
    """An engine in a process of its own.

    In one process, OpenMP's threads would no longer wait actively once there are more of them than cores.

    Args:
        make: loads the engine there.
    """

    def __init__(self, make: Callable[[], BenchEngine]) -> None:
        from transformers.utils.logging import disable_progress_bar

        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=disable_progress_bar)
        self.name, self.dtype, self.batch_sizes = self._process.submit(_load, make).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call a module's function there, with the engine as its first argument."""
        return self._process.submit(_call, function, *arguments).result()


# In an engine's process, that engine.
_loaded: list[BenchEngine] = []


def _load(make: Callable[[], BenchEngine]) -> tuple[str, str, Sequence[int | None]]:
    engine = make()
    _loaded.append(engine)
    return engine.name, engine.dtype, engine.batch_sizes


def _call(function: Callable[..., Result], *arguments: object) -> Result:
    return function(_loaded[0], *arguments)


def _batch_sizes(engine: Isolated, case: Case) -> list[int | None]:
    # A batch that a smaller one holds already is the same work again.
    sizes = list(engine.batch_sizes)
    return sizes[: 1 + sum(size is not None and size < len(case.texts) for size in sizes)]


def _embed(engine: BenchEngine, case: Case, texts: list[str], batch_size: int | None) -> NDArray[np.float32]:
    found = engine.serve(texts, case.prompt) if case.at_once else engine.encode(texts, case.prompt, batch_size)
    return np.asarray(found, dtype=np.float32)


def _turn(engine: BenchEngine, case: Case, batch_size: int | None) -> tuple[float, NDArray[np.float32]]:
    # One text first: it brings back the weights that the engine before had driven out of the caches.
    _embed(engine, case, case.texts[:1], batch_size)
    return _median_seconds(lambda: _embed(engine, case, case.texts, batch_size))


def _median_seconds(call: Callable[[], Result]) -> tuple[float, Result]:
    times: list[float] = []
    while sum(times) < _TURN_SECONDS:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def _mean_cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    # Peers normalise in bfloat16, so that their vectors' lengths are off by a thousandth.
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / lengths).mean())


def _matrix_limit(spec: ModelSpec, dtype: str, device: str) -> float:
    import torch

    count = _LIMIT_ROWS[device]
    shapes = (count, spec.hidden_size), (spec.ffn_size, spec.hidden_size)
    if dtype == "int8":
        from qwen3_embed_integrations.engine.cpu import int8_product

        integers = [torch.randint(-63, 64, shape, dtype=torch.int8) for shape in shapes]
        # Where the processor has no instruction for them, torch's own product is far from the fastest.
        fastest = int8_product()[0]
        product = fastest(integers[1], torch.ones(spec.ffn_size))
        activations = integers[0].float() if fastest.rounds else integers[0].view(torch.uint8)
        seconds = min(
            _median_seconds(lambda: torch._int_mm(integers[0], integers[1].t()))[0],
            _median_seconds(lambda: product(activations, torch.float32))[0],
        )
    else:
        rows, weight = (torch.randn(shape, device=device).to(getattr(torch, dtype)) for shape in shapes)
        # On CUDA, some in a row: one alone takes hardly longer than it takes to ask for it.
        times = 1 if device == "cpu" else 20
        wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None

        def multiply() -> None:
            for _ in range(times):
                torch.matmul(rows, weight.t())
            wait()

        seconds = _median_seconds(multiply)[0] / times
    return 2 * count * spec.hidden_size * spec.ffn_size / seconds


def _processor(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    versions = {"qwen3-embed-integrations": qwen3_embed_integrations.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
