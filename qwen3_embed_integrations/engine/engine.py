"""Loaded weights, one set in the process for each distinct setting, and the forward pass over them."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, Qwen3Config

from qwen3_embed_integrations.engine.batching import groups
from qwen3_embed_integrations.engine.model_files import (
    MODULES,
    SENTENCE_TRANSFORMERS,
    check_folder,
    check_tensors,
    read_object,
    read_tensors,
    rotary_settings,
)
from qwen3_embed_integrations.engine.packed import PackedModel, shared_prefix
from qwen3_embed_integrations.engine.padded import PaddedModel
from qwen3_embed_integrations.engine.scheduler import Item, Job, Scheduler
from qwen3_embed_integrations.waiting import present_caller, stop_if_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from qwen3_embed_integrations.engine.source import ModelSource

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Matrix products are large enough at these sizes; more only takes memory.
_BATCH_TOKENS_CPU = 2048
_BATCH_TOKENS_ACCELERATOR = 16_384
_BATCH_TOKENS_LEAST = 512

# The process in which torch's threads were started, for a fork of it, where they are missing.
_computed_in: int | None = None


@dataclass(frozen=True)
class EngineSettings:
    """All that makes two sets of loaded weights differ.

    Attributes:
        source: where the files come from, pinned, so that a folder written anew is another model.
        device: torch's name of the device, with its index.
        dtype: torch's name of the weights' type, or of the activations' where the weights are quantized.
        quantization: "int8", or None.
        device_map: transformers' own, for a model that is split; its pairs instead of a dictionary.
        replica: which one of those on the same device.
    """

    source: ModelSource
    device: str
    dtype: str
    quantization: str | None = None
    device_map: str | tuple[tuple[str, Any], ...] | None = None
    replica: int = 0


class Embedded(NamedTuple):
    """What was computed for some texts, and what did not have to be.

    Attributes:
        states: each text's pooled hidden state, float32 array, shape (n, hidden size), not normalised.
        cache_hits: texts that equal an earlier one of them.
        cached_tokens: their tokens, and those of the others that have the prompt's kept keys and values.
    """

    states: NDArray[np.float32]
    cache_hits: int
    cached_tokens: int


class Engine:
    """A model that is loaded on its first use, once, and then shared by all encoders with the same settings.

    Args:
        settings: what to load, and where to.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._model: PackedModel | PaddedModel | None = None
        self._scheduler = Scheduler()
        # OpenMP gives each thread that computes threads of its own, and once there are more of them than cores, none
        # waits actively any more: after callers on 32 threads, a query took 1.7 times as long.
        self._thread = ThreadPoolExecutor(1) if torch.device(settings.device).type == "cpu" else None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    @property
    def waiting(self) -> int:
        """How many callers it computes for or keeps waiting."""
        return self._scheduler.waiting

    def load(self, *, show_progress: bool = False) -> PackedModel | PaddedModel:
        """Load the weights, unless they are loaded already.

        Args:
            show_progress: whether the libraries that fetch and load them may draw their progress bars.

        Returns:
            What runs them.

        Raises:
            ValueError: the model cannot be run, or not quantized.
            RuntimeError: the process was forked from the one that loaded them, and torch would hang.
        """
        if _computed_in not in (None, os.getpid()) and torch.get_num_threads() > 1:
            raise RuntimeError(
                "this process was forked after the model was loaded, and torch's threads do not survive that: start "
                "workers with 'spawn', or call torch.set_num_threads(1) before the model is loaded"
            )
        with self._lock:
            if self._model is None:
                stop_if_left()
                # On the caller's thread, where a download can be interrupted.
                folder = self.settings.source.model_folder(show_progress=show_progress)
                # After a fork, torch makes its pool anew at the first use, and transformers loads on several threads,
                # of which two could meet there ("Invalid thread pool!").
                torch.set_num_threads(torch.get_num_threads())

                def load() -> PackedModel | PaddedModel:
                    with nullcontext() if show_progress else _without_bars():
                        return _load(self.settings, folder)

                self._model = self._on_thread(load)
            return self._model

    def embed(
        self,
        token_ids: Sequence[NDArray[np.int64]],
        prompt_ids: NDArray[np.int64],
        *,
        batch_tokens: int | None,
        show_progress: bool,
    ) -> Embedded:
        """Compute the pooled hidden state of each text; equal texts are computed once.

        Args:
            token_ids: each text's token ids, prompt and end token included, shape (tokens,); at least one text.
            prompt_ids: the prompt's own token ids, without end token, shape (tokens,).
            batch_tokens: the most tokens to run at once; None for the device's default.
            show_progress: whether to draw a progress bar, in texts, which a single batch gets none of, and those of
                loading.

        Returns:
            The states in the order of token_ids.
        """
        model = self.load(show_progress=show_progress)
        positions: dict[bytes, list[int]] = {}
        for position, ids in enumerate(token_ids):
            positions.setdefault(ids.tobytes(), []).append(position)
        equal = list(positions.values())
        items = [Item(token_ids[same[0]], prompt_ids) for same in equal]
        budget = batch_tokens or _budget(self.settings)
        padded = isinstance(model, PaddedModel)
        batches = groups([len(item.ids) for item in items], budget, padded=padded)
        hide = not show_progress or len(batches) == 1
        with tqdm(total=len(token_ids), desc="Embedding", unit="text", disable=hide) as progress:

            def report(group: list[int]) -> None:
                progress.update(sum(len(equal[index]) for index in group))

            rows = self.run(items, batches, budget, report)
        result = np.empty((len(token_ids), rows.shape[1]), dtype=np.float32)
        for same, row in zip(equal, rows, strict=True):
            result[same] = row
        cached_tokens = sum(len(token_ids[same[0]]) * (len(same) - 1) for same in equal)
        if not padded and len(prompt_ids):
            cached_tokens += sum(shared_prefix(prompt_ids, item.ids) for item in items)
        return Embedded(result, len(token_ids) - len(equal), cached_tokens)

    def run(
        self,
        items: Sequence[Item],
        batches: Sequence[list[int]],
        budget: int,
        report: Callable[[list[int]], object],
    ) -> NDArray[np.float32]:
        """Compute items, together with what other callers want meanwhile.

        Args:
            items: the texts.
            batches: positions in items that may run together.
            budget: the most tokens to run at once.
            report: told the positions of each batch that is done.

        Returns:
            float32 array, shape (n, hidden size), in the order of the items.
        """
        return self._scheduler.run(Job(items, deque(batches), budget, report), self._compute)

    def _compute(self, items: Sequence[Item]) -> NDArray[np.float32]:
        return self._on_thread(lambda: self._embed(items))

    def _on_thread(self, work: Callable[[], Result]) -> Result:
        """Do something on the engine's own thread; on the caller's where there is none, or torch has one thread."""
        global _computed_in
        threads = torch.get_num_threads()
        if threads > 1:
            _computed_in = os.getpid()
        if self._thread is None or threads == 1:
            return work()

        def with_threads() -> Result:
            # What the caller set holds for its own thread and for those that have not computed yet.
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            return work()

        try:
            future = self._thread.submit(with_threads)
        except RuntimeError:
            return work()  # the program's main thread has ended, and only this one is still at work
        try:
            return future.result()
        finally:
            if not future.done() and isinstance(self._model, PackedModel):
                self._model.stop()
            del future  # holds the error, which holds this frame

    def _embed(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Compute items together, or in halves where they do not fit into memory together."""
        try:
            return self.load().embed(items)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(items) == 1:
                raise MemoryError(
                    f"a text of {len(items[0].ids)} tokens does not fit into the memory of {self.settings.device}"
                ) from error
        # Outside the except block, whose traceback still holds what did not fit.
        half = len(items) // 2
        return np.concatenate([self._embed(items[:half]), self._embed(items[half:])])


class Replicas(Engine):
    """Engines with the same weights, each on a device; a group goes to whichever is free.

    Args:
        engines: at least one.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        super().__init__(engines[0].settings)
        self._engines = engines

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory, on every device."""
        return all(engine.is_loaded for engine in self._engines)

    def load(self, *, show_progress: bool = False) -> PackedModel | PaddedModel:
        """Load the weights on every device, unless they are loaded already.

        Args:
            show_progress: whether the libraries that fetch and load them may draw their progress bars.

        Returns:
            What runs them on the first device.
        """
        models = [engine.load(show_progress=show_progress) for engine in self._engines]
        return models[0]

    def run(
        self,
        items: Sequence[Item],
        batches: Sequence[list[int]],
        budget: int,
        report: Callable[[list[int]], object],
    ) -> NDArray[np.float32]:
        """Compute items on all devices, as `Engine.run` does on one."""
        engines = sorted(self._engines, key=lambda engine: engine.waiting)[: len(batches)]
        if len(engines) == 1:
            return engines[0].run(items, batches, budget, report)
        waiting = deque(batches)
        rows: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(items)

        def work(engine: Engine) -> None:
            while waiting:
                try:
                    group = waiting.popleft()
                except IndexError:
                    return  # another thread took the last one meanwhile
                own = [items[position] for position in group]
                try:
                    found = engine.run(own, [[*range(len(own))]], budget, lambda _: None)
                except BaseException:
                    # The others stop after the group that they compute.
                    waiting.clear()
                    raise
                for position, row in zip(group, found, strict=True):
                    rows[position] = row
                report(group)

        caller = present_caller()
        with ThreadPoolExecutor(len(engines)) as pool:
            try:
                for future in [pool.submit(caller.bind(work), engine) for engine in engines]:
                    future.result()
            except BaseException:
                # An interrupt while waiting, too.
                waiting.clear()
                raise
        return np.stack(rows)


def _budget(settings: EngineSettings) -> int:
    """Find how many tokens to run at once: what fills the device, or what half of its free memory holds."""
    device = torch.device(settings.device)
    if device.type == "cuda":
        # What torch keeps of earlier groups is not free to others, but to the next group it is.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + kept
    elif device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        return _BATCH_TOKENS_CPU
    # At its widest, the MLP holds three tensors of four to five hidden sizes, and norms hold float32.
    dtype: torch.dtype = getattr(torch, settings.dtype)
    per_token = settings.source.limits()[0] * (3 * 5 * dtype.itemsize + 8)
    return max(_BATCH_TOKENS_LEAST, min(_BATCH_TOKENS_ACCELERATOR, free // 2 // per_token))


def _is_out_of_memory(error: RuntimeError) -> bool:
    # torch's own allocator for the CPU has no class of error.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


_bars_lock = threading.Lock()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars in this thread."""
    bars: Any = transformers.utils.logging
    # What is changed here is the process's, and so put back before another thread changes it.
    with _bars_lock:
        if not hasattr(bars, "set_tqdm_hook"):
            # Older releases have nothing but a switch for all threads.
            were_drawn = bars.is_progress_bar_enabled()
            bars.disable_progress_bar()
            try:
                yield
            finally:
                if were_drawn:
                    bars.enable_progress_bar()
            return
        own, before = threading.get_ident(), None

        def hook(factory: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            if threading.get_ident() == own:
                return factory(*arguments, **{**options, "disable": True})
            return factory(*arguments, **options) if before is None else before(factory, arguments, options)

        before = bars.set_tqdm_hook(hook)
        try:
            yield
        finally:
            bars.set_tqdm_hook(before)


def _load(settings: EngineSettings, folder: Path) -> PackedModel | PaddedModel:
    """Load a model and choose what runs it."""
    model = _load_modules(settings, folder)
    quantized = settings.quantization is not None
    if PackedModel.fits(model):
        return PackedModel(model, quantized=quantized)
    if quantized:
        raise ValueError(f"quantization needs a Qwen3 model, which {settings.source.location} is not")
    return PaddedModel(model)


def _load_modules(settings: EngineSettings, folder: Path) -> SentenceTransformer:
    """Load a model's weights and modules from its files, safetensors only and without code of its own."""
    check_folder(folder)
    config_path = folder / "config.json"
    rotary = rotary_settings(str(config_path), read_object(config_path))
    config_kwargs = _config_kwargs(rotary)
    with _named_errors(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **config_kwargs)
    _check_rotary(folder, config, rotary)
    _check_weights(folder, config)
    with _named_errors(folder):
        model = _sentence_transformer(settings, folder, config_kwargs)
    # Its own default; the engine gives whole states.
    model.truncate_dim = None
    width, hidden_size = model.get_embedding_dimension(), settings.source.limits()[0]
    if width != hidden_size:
        raise ValueError(f"{settings.source.location} gives vectors of {width}, not of its hidden size {hidden_size}")
    model.eval()
    # The card holds the model in turn, whose memory would be free only once the garbage collector comes by.
    model.model_card_data.model = None
    logger.info("loaded %s in %s on %s", settings.source.location, settings.dtype, settings.device)
    return model


def _sentence_transformer(settings: EngineSettings, folder: Path, config_kwargs: dict[str, Any]) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    model_kwargs: dict[str, Any] = {"dtype": getattr(torch, settings.dtype), "use_safetensors": True}
    device: str | None = settings.device
    if (places := settings.device_map) is not None:
        model_kwargs["device_map"] = places if isinstance(places, str) else dict(places)
        device = None
    if (folder / MODULES).is_file():
        return SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=model_kwargs,
            config_kwargs=config_kwargs,
        )
    # A bare transformers checkpoint: sentence-transformers by itself would pool it by the mean.
    transformer = Transformer(
        str(folder), model_kwargs={**model_kwargs, "local_files_only": True}, config_kwargs=config_kwargs
    )
    pooling = Pooling(settings.source.limits()[0], pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling], device=device)


@contextmanager
def _named_errors(folder: Path) -> Iterator[None]:
    """Say what cannot be loaded, and with what it was saved: what a file makes the libraries raise has many classes."""
    import sentence_transformers

    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and _is_out_of_memory(error):
            raise
        # What a setting needs and is not installed (accelerate for device_map) is not the files' doing.
        if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
            raise
        path = folder / SENTENCE_TRANSFORMERS
        saved = read_object(path).get("__version__") if path.is_file() else None
        here = {"sentence_transformers": sentence_transformers.__version__, "transformers": transformers.__version__}
        raise ValueError(
            f"the model in {folder} cannot be loaded: {type(error).__name__}: {error} (saved with: "
            f"{saved or 'unknown'}; here: {here})"
        ) from error


def _reads_rope_parameters() -> bool:
    # transformers 4 keeps the entry of a file too, but computes with others.
    return hasattr(Qwen3Config(), "rope_parameters")


def _config_kwargs(rotary: Mapping[str, Any]) -> dict[str, Any]:
    """Say again what transformers 4 does not read of a config that transformers 5 wrote: it would rotate otherwise."""
    if not rotary or _reads_rope_parameters():
        return {}
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    theta = {"rope_theta": rotary["rope_theta"]} if "rope_theta" in rotary else {}
    return {**theta, "rope_scaling": None if scaling.get("rope_type", "default") == "default" else scaling}


def _check_rotary(folder: Path, config: Any, rotary: Mapping[str, Any]) -> None:
    """Check that the installed transformers read what the file says, whichever release wrote it."""
    if _reads_rope_parameters():
        read = getattr(config, "rope_parameters", None) or {}
    else:
        read = {"rope_theta": getattr(config, "rope_theta", None), **(getattr(config, "rope_scaling", None) or {})}
    for name, value in rotary.items():
        found = read.get(name, "default" if name == "rope_type" else None)
        if found != value:
            raise ValueError(
                f"{folder / 'config.json'} gives {name} as {value!r}, and transformers {transformers.__version__} "
                f"reads {found!r}: install another release of transformers"
            )


def _check_weights(folder: Path, config: Any) -> None:
    """Check that the files hold the model's tensors, and no others, before they are read."""
    held = read_tensors(folder)
    if config.is_encoder_decoder:
        return  # sentence-transformers takes a part of it
    with _named_errors(folder), torch.device("meta"):
        model = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_tensors(folder, held, needed, f"{model.base_model_prefix}.")


_engines: weakref.WeakValueDictionary[EngineSettings, Engine] = weakref.WeakValueDictionary()
_registry_lock = threading.Lock()


def shared_engine(
    source: ModelSource,
    *,
    device: str | Sequence[str] | None,
    dtype: str,
    quantization: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Engine:
    """Find the engine with these settings in this process, or make one; it goes when nobody holds it any more.

    Args:
        source: where the files come from, pinned.
        device: torch's name of a device, or several for a replica on each; None for CUDA, then MPS, then the CPU.
        dtype: "auto", "float32", "bfloat16" or "float16".
        quantization: "int8", or None.
        device_map: transformers' own, for a model that is split.

    Returns:
        The engine, its weights loaded or not.

    Raises:
        ValueError: torch does not know the device, or cannot use it here; quantization is asked for beside the CPU.
    """
    if device is None or isinstance(device, str):
        device = [device] if device is not None else [_default_device()]
    resolved = [resolve_device(name) for name in device]
    for name in resolved:
        if quantization is not None and name != "cpu":
            raise ValueError(f"quantization={quantization!r} runs on the CPU only, not on {name!r}")
    pairs = tuple(device_map.items()) if isinstance(device_map, Mapping) else device_map
    seen: Counter[str] = Counter()
    engines = []
    for name in resolved:
        settings = EngineSettings(source, name, resolve_dtype(dtype, name), quantization, pairs, seen[name])
        seen[name] += 1
        with _registry_lock:
            engine = _engines.get(settings)
            if engine is None:
                engine = _engines[settings] = Engine(settings)
        engines.append(engine)
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_device(device: str) -> str:
    """Give a device's full name, and make sure that it can be used.

    Args:
        device: torch's name of a device.

    Returns:
        The name, with an index where the device has one.

    Raises:
        ValueError: torch does not know the device, or cannot use it here.
    """
    try:
        # A number that goes there and back is the one sure sign.
        there = torch.zeros(1, device=device)
        there.cpu()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return there.device.type if there.device.type in ("cpu", "mps") else str(there.device)


def resolve_dtype(dtype: str, device: str) -> str:
    """Choose the weights' type: "auto" is bfloat16 where the hardware computes with it, else float32.

    Never float16 by itself: it overflows to NaN in the 8B (QwenLM/Qwen3-Embedding issue 164).

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: torch's name of the device.

    Returns:
        torch's name of the type.
    """
    if dtype != "auto":
        return dtype
    kind = torch.device(device).type
    if kind == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif kind == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = False
    return "bfloat16" if fast else "float32"
