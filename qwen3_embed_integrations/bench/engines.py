"""What is measured: this package and its peers, each as its own documentation says to use it, under one interface."""

from __future__ import annotations

import importlib
import tempfile
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from qwen3_embed_integrations.encoder import Quantization

BATCH_SIZES = {"cpu": (1, 8, 32), "cuda": (8, 32, 128)}
"""What an engine that pads its batches is tried at, by device; its best counts."""

THREADS = 32
"""Callers at once."""

PEER_DTYPES = ("bfloat16", "float32")
"""Of the peers' weights: transformers 5 loads these checkpoints in bfloat16, transformers 4 in float32."""


class BenchEngine(ABC):
    """One way to embed texts.

    Attributes:
        name: of the tool.
        dtype: that its matrix products run in.
        batch_sizes: texts a batch to try; (None,) leaves it to the tool.
    """

    name: str
    dtype: str
    batch_sizes: Sequence[int | None] = (None,)

    @abstractmethod
    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> Any:
        """Embed texts that are there together.

        Args:
            texts: the texts.
            prompt: what stands before each, or "" for documents.
            batch_size: one of `batch_sizes`.

        Returns:
            Anything that numpy makes an array of shape (n, dimensions) of.
        """

    def serve(self, texts: list[str], prompt: str) -> Any:
        """Embed texts that come one by one; where threads gain nothing, one after the other.

        Args:
            texts: the texts.
            prompt: what stands before each.

        Returns:
            Anything that numpy makes an array of shape (n, dimensions) of.
        """
        return [self.encode([text], prompt, None)[0] for text in texts]


class ThisPackage(BenchEngine):
    """`Qwen3Encoder`.

    Args:
        model: the model's folder.
        quantization: None or "int8".
        device: "cpu" or "cuda".
    """

    def __init__(self, model: Path, quantization: Quantization | None, device: str) -> None:
        from qwen3_embed_integrations.encoder import Qwen3Encoder

        self._encoder = Qwen3Encoder(model, device=device, quantization=quantization)
        self._threads = ThreadPoolExecutor(THREADS)
        self.dtype = quantization or self._encoder.dtype
        self.name = f"this package, {self.dtype}"

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> NDArray[np.float32]:
        """Embed texts; the encoder's own query prompt is the one that the peers are given."""
        return self._encoder.encode_queries(texts) if prompt else self._encoder.encode_documents(texts)

    def serve(self, texts: list[str], prompt: str) -> list[NDArray[np.float32]]:
        """Embed one text a call, from many threads at once."""
        return list(self._threads.map(lambda text: self.encode([text], prompt, None)[0], texts))


class LangChain(BenchEngine):
    """LangChain's `HuggingFaceEmbeddings` with the prompt set.

    It embeds one query a call; several at once go to the sentence-transformers model inside it, in one batch.

    Args:
        model: the model's folder.
        prompt: of queries.
        dtype: one of `PEER_DTYPES`.
        device: "cpu" or "cuda".
    """

    name = "LangChain"

    def __init__(self, model: Path, prompt: str, dtype: str, device: str) -> None:
        from langchain_huggingface import HuggingFaceEmbeddings

        self.dtype = dtype
        self._embeddings = HuggingFaceEmbeddings(
            model_name=str(model),
            model_kwargs={"device": device, "model_kwargs": _weights_in(dtype)},
            query_encode_kwargs={"prompt": prompt},
        )

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> Any:
        """Embed texts as the wrapper's defaults have it."""
        if not prompt:
            return self._embeddings.embed_documents(texts)
        if len(texts) == 1:
            return [self._embeddings.embed_query(texts[0])]
        return self._embeddings._client.encode(texts, prompt=prompt, batch_size=32)


class LlamaIndex(BenchEngine):
    """LlamaIndex's `HuggingFaceEmbedding` with the prompt set; it embeds one query a call.

    Args:
        model: the model's folder.
        prompt: of queries.
        dtype: one of `PEER_DTYPES`.
        device: "cpu" or "cuda".
    """

    name = "LlamaIndex"

    def __init__(self, model: Path, prompt: str, dtype: str, device: str) -> None:
        from llama_index.embeddings.huggingface import HuggingFaceEmbedding

        self.dtype = dtype
        self._embedding = HuggingFaceEmbedding(
            model_name=str(model), device=device, query_instruction=prompt, model_kwargs=_weights_in(dtype)
        )

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> list[list[float]]:
        """Embed texts as the wrapper's defaults have it."""
        if prompt:
            return [self._embedding.get_query_embedding(text) for text in texts]
        vectors: list[list[float]] = self._embedding.get_text_embedding_batch(texts)
        return vectors


class Haystack(BenchEngine):
    """Haystack's sentence-transformers embedders with the prompt set; the text embedder takes one query a call.

    Args:
        model: the model's folder.
        prompt: of queries.
        dtype: one of `PEER_DTYPES`.
        device: "cpu" or "cuda".
    """

    name = "Haystack"

    def __init__(self, model: Path, prompt: str, dtype: str, device: str) -> None:
        from haystack import Document
        from haystack.utils import ComponentDevice
        from haystack_integrations.components.embedders.sentence_transformers import (
            SentenceTransformersDocumentEmbedder,
            SentenceTransformersTextEmbedder,
        )

        self.dtype = dtype
        settings: dict[str, Any] = {
            "model": str(model),
            "device": ComponentDevice.from_str(device),
            "progress_bar": False,
            "model_kwargs": _weights_in(dtype),
        }
        self._document = Document
        self._text_embedder = SentenceTransformersTextEmbedder(prefix=prompt, **settings)
        self._document_embedder = SentenceTransformersDocumentEmbedder(**settings)
        self._text_embedder.warm_up()
        self._document_embedder.warm_up()

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> list[list[float]]:
        """Embed texts as the embedders' defaults have it."""
        if prompt:
            return [self._text_embedder.run(text)["embedding"] for text in texts]
        documents = self._document_embedder.run([self._document(content=text) for text in texts])["documents"]
        return [document.embedding for document in documents]


class SentenceTransformers(BenchEngine):
    """`SentenceTransformer.encode`.

    Args:
        model: the model's folder.
        dtype: one of `PEER_DTYPES`.
        device: "cpu" or "cuda".
    """

    name = "sentence-transformers"

    def __init__(self, model: Path, dtype: str, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.dtype, self.batch_sizes = dtype, BATCH_SIZES[device]
        self._model = SentenceTransformer(str(model), device=device, model_kwargs=_weights_in(dtype))

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> Any:
        """Embed texts in batches."""
        return self._model.encode(texts, prompt=prompt, batch_size=batch_size or 32, show_progress_bar=False)


class OnnxRuntime(BenchEngine):
    """onnxruntime on the model exported to ONNX and quantized dynamically to int8.

    Pooling and normalisation are part of the graph, and batches are filled by length as sentence-transformers does.

    Args:
        model: the model's folder.
        folder: where the exported model is, or goes.
    """

    name = "onnxruntime"
    dtype = "int8"
    batch_sizes = BATCH_SIZES["cpu"]

    def __init__(self, model: Path, folder: Path) -> None:
        import torch
        from onnxruntime import InferenceSession, SessionOptions
        from transformers import AutoTokenizer

        options = SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = InferenceSession(str(export_onnx(model, folder)), options, providers=["CPUExecutionProvider"])
        self._tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def encode(self, texts: list[str], prompt: str, batch_size: int | None) -> NDArray[np.float32]:
        """Embed texts in batches."""
        size = batch_size or 32
        prompted = [prompt + text for text in texts]
        order = sorted(range(len(texts)), key=lambda index: -len(prompted[index]))
        batches: list[NDArray[np.float32]] = []
        for start in range(0, len(order), size):
            batch = [prompted[index] for index in order[start : start + size]]
            inputs = self._tokenizer(batch, padding=True, return_tensors="np")
            feed = {name: inputs[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
            batches.append(self._session.run(None, feed)[0])
        return np.concatenate(batches)[np.argsort(order)]


@dataclass(frozen=True)
class Peer:
    """A tool to compare with.

    Attributes:
        modules: that have to be there beyond what this package needs itself.
        make: loads it: the model's folder, the prompt of queries, the type of the weights, the device, and the folder
            of exports.
        devices: where it is measured.
    """

    modules: tuple[str, ...]
    make: Callable[[Path, str, str, str, Path], BenchEngine]
    devices: tuple[str, ...] = tuple(BATCH_SIZES)

    @property
    def is_installed(self) -> bool:
        """Whether its modules can be imported."""
        try:
            for module in self.modules:
                importlib.import_module(module)
        except ImportError:
            return False
        return True


PEERS = {
    "langchain": Peer(
        ("langchain_huggingface",),
        lambda model, prompt, dtype, device, folder: LangChain(model, prompt, dtype, device),
    ),
    "llama-index": Peer(
        ("llama_index.embeddings.huggingface",),
        lambda model, prompt, dtype, device, folder: LlamaIndex(model, prompt, dtype, device),
    ),
    "haystack": Peer(
        ("haystack_integrations.components.embedders.sentence_transformers",),
        lambda model, prompt, dtype, device, folder: Haystack(model, prompt, dtype, device),
    ),
    "sentence-transformers": Peer(
        (), lambda model, prompt, dtype, device, folder: SentenceTransformers(model, dtype, device)
    ),
    "onnxruntime": Peer(
        ("onnx", "onnxruntime", "onnxscript"),
        lambda model, prompt, dtype, device, folder: OnnxRuntime(model, folder),
        devices=("cpu",),
    ),
}
"""By name on the command line."""


def make_peer(name: str, model: Path, prompt: str, dtype: str, device: str, folder: Path) -> BenchEngine:
    """Load a peer, in whatever process this runs.

    Args:
        name: in `PEERS`.
        model: the model's folder.
        prompt: of queries.
        dtype: one of `PEER_DTYPES`.
        device: one of the peer's.
        folder: of its exports.

    Returns:
        The engine.
    """
    return PEERS[name].make(model, prompt, dtype, device, folder)


def export_onnx(model: Path, folder: Path) -> Path:
    """Export a model to ONNX with its pooling and normalisation, and quantize its linear layers dynamically to int8.

    Args:
        model: the model's folder.
        folder: receives the folder `onnx-int8`; what is there already is kept.

    Returns:
        The quantized model's file.
    """
    done = folder / "onnx-int8"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # In a process of its own, which gives back the memory of the float32 weights and their copies.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                process.submit(_export_onnx, model, Path(scratch)).result()
            (Path(scratch) / done.name).rename(done)
    return done / "model.onnx"


def _export_onnx(model: Path, scratch: Path) -> None:
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = AutoModel.from_pretrained(model, dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            output = self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            # Padding stands on the left, so that the last position is every text's last token.
            return torch.nn.functional.normalize(output.last_hidden_state[:, -1], dim=-1)

    ids = torch.ones(2, 16, dtype=torch.int64)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    exported, quantized = scratch / "float32.onnx", scratch / "onnx-int8"
    torch.onnx.export(
        Embedder().eval(),
        (ids, torch.ones_like(ids)),
        exported,
        dynamo=True,
        verbose=False,
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes=(free, free),
    )
    quantized.mkdir()
    quantize_dynamic(exported, quantized / "model.onnx", weight_type=QuantType.QInt8, use_external_data_format=True)


def _weights_in(dtype: str) -> dict[str, Any]:
    import torch

    return {"dtype": getattr(torch, dtype)}
