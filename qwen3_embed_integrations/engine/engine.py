"""Loaded weights, one set in the process for each distinct setting, and the forward pass over them."""

from __future__ import annotations

import logging
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from qwen3_embed_integrations.engine.batching import groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

    from qwen3_embed_integrations.engine.source import ModelSource

logger = logging.getLogger(__name__)

# Padding stays small and matrix products large enough at these sizes.
_BATCH_TOKENS = {"cpu": 2048}
_BATCH_TOKENS_ACCELERATOR = 16_384


@dataclass(frozen=True)
class EngineSettings:
    """All that makes two sets of loaded weights differ.

    Attributes:
        source: where the files come from, pinned, so that a folder written anew is another model.
        device: torch's name of the device, with its index.
        dtype: torch's name of the weights' type.
    """

    source: ModelSource
    device: str
    dtype: str


class Engine:
    """A model that is loaded on its first use, once, and then shared by all encoders with the same settings.

    Args:
        settings: what to load, and where to.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._model: SentenceTransformer | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    def load(self) -> None:
        """Load the weights, unless they are loaded already."""
        with self._lock:
            self._loaded()

    def embed(
        self, token_ids: Sequence[NDArray[np.int64]], *, batch_tokens: int | None, show_progress: bool
    ) -> NDArray[np.float32]:
        """Compute the pooled hidden state of each text.

        Args:
            token_ids: each text's token ids, shape (tokens,).
            batch_tokens: the most tokens to run at once; None for the device's default.
            show_progress: whether to draw a progress bar, in texts; a single batch gets none.

        Returns:
            float32 array, shape (n, hidden size), not normalised, in the order of token_ids.
        """
        if not token_ids:
            return np.zeros((0, self.settings.source.limits()[0]), dtype=np.float32)
        budget = batch_tokens or _BATCH_TOKENS.get(torch.device(self.settings.device).type, _BATCH_TOKENS_ACCELERATOR)
        vectors: list[NDArray[np.float32] | None] = [None] * len(token_ids)
        batches = groups([len(ids) for ids in token_ids], budget)
        hide = not show_progress or len(batches) == 1
        with tqdm(total=len(token_ids), desc="Embedding", unit="text", disable=hide) as progress:
            for group in batches:
                # One group at a time, so that the memory in use does not grow with the number of callers.
                with self._lock:
                    computed = self._forward([token_ids[position] for position in group])
                for position, vector in zip(group, computed, strict=True):
                    vectors[position] = vector
                progress.update(len(group))
        return np.stack([vector for vector in vectors if vector is not None])

    def _forward(self, token_ids: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        from sentence_transformers.sentence_transformer.modules import Normalize

        model = self._loaded()
        lengths = [len(ids) for ids in token_ids]
        input_ids = torch.zeros((len(token_ids), max(lengths)), dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for row, (ids, length) in enumerate(zip(token_ids, lengths, strict=True)):
            input_ids[row, :length] = torch.from_numpy(ids)
            attention_mask[row, :length] = 1
        features = {
            "input_ids": input_ids.to(self.settings.device),
            "attention_mask": attention_mask.to(self.settings.device),
        }
        with torch.inference_mode():
            for module in model:
                # Normalising waits until the vector is cut, and is done in float32.
                if not isinstance(module, Normalize):
                    features = module(features)
        pooled: NDArray[np.float32] = features["sentence_embedding"].float().cpu().numpy()
        return pooled

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            self._model = _load(self.settings)
        return self._model


def _load(settings: EngineSettings) -> SentenceTransformer:
    """Load a model's weights and modules from its files, safetensors only and without code of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = settings.source.model_folder()
    model_kwargs = {"dtype": getattr(torch, settings.dtype), "use_safetensors": True}
    if (folder / "modules.json").is_file():
        model = SentenceTransformer(
            str(folder),
            device=settings.device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=model_kwargs,
        )
    else:
        # A bare transformers checkpoint: sentence-transformers by itself would pool it by the mean.
        transformer = Transformer(str(folder), model_kwargs={**model_kwargs, "local_files_only": True})
        hidden_size = settings.source.limits()[0]
        pooling = Pooling(hidden_size, pooling_mode="lasttoken")
        model = SentenceTransformer(modules=[transformer, pooling], device=settings.device)
    model.eval()
    logger.info("loaded %s in %s on %s", settings.source.location, settings.dtype, settings.device)
    return model


_engines: weakref.WeakValueDictionary[EngineSettings, Engine] = weakref.WeakValueDictionary()
_registry_lock = threading.Lock()


def shared_engine(source: ModelSource, *, device: str | None, dtype: str) -> Engine:
    """Find the engine with these settings in this process, or make one; it goes when nobody holds it any more.

    Args:
        source: where the files come from, pinned.
        device: torch's name of a device; None for CUDA, then MPS, then the CPU.
        dtype: "auto", "float32", "bfloat16" or "float16".

    Returns:
        The engine, its weights loaded or not.

    Raises:
        ValueError: torch does not know the device, or cannot use it here.
    """
    resolved = resolve_device(device)
    settings = EngineSettings(source, resolved, resolve_dtype(dtype, resolved))
    with _registry_lock:
        engine = _engines.get(settings)
        if engine is None:
            engine = _engines[settings] = Engine(settings)
        return engine


def resolve_device(device: str | None) -> str:
    """Give a device's full name, and make sure that it can be used.

    Args:
        device: torch's name of a device; None for CUDA, then MPS, then the CPU.

    Returns:
        The name, with an index where the device has one.

    Raises:
        ValueError: torch does not know the device, or cannot use it here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} was asked for, but this torch has no usable CUDA device")
        index = torch.cuda.current_device() if resolved.index is None else resolved.index
        if index >= torch.cuda.device_count():
            raise ValueError(f"device {device!r} was asked for, but there are {torch.cuda.device_count()}")
        return f"cuda:{index}"
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} was asked for, but this torch has no usable MPS device")
    return resolved.type if resolved.type in ("cpu", "mps") else str(resolved)


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
