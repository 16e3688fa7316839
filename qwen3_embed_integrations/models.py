"""Facts about the models, as data.

Sources: the technical report (https://arxiv.org/abs/2506.05176), the official repository
(https://github.com/QwenLM/Qwen3-Embedding) and the model cards on the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTEXT = 32_768
"""Tokens that the models read at most, the end token included."""

MIN_DIMENSIONS = 32
"""The fewest dimensions that the models were trained to be cut to (Matryoshka representation learning)."""

TINY_FOLDER = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class ModelSpec:
    """What is known of one model without loading it.

    Attributes:
        name: the short name under which an encoder finds it.
        hub_id: its name on the Hugging Face hub, None for the bundled model.
        layers: number of transformer layers.
        hidden_size: width of the hidden state, which is also the largest dimension of its vectors.
        query_heads: attention heads of the queries.
        kv_heads: attention heads of the keys and values (grouped-query attention).
        head_dim: width of one head.
        ffn_size: width of the feed-forward layer.
        min_dimensions: the fewest dimensions its vectors may be cut to.
        max_dimensions: the most dimensions, those of an uncut vector.
        context: tokens it reads at most, the end token included.
        license: SPDX identifier of the weights' licence.
        scores: published score by benchmark, in percent.
    """

    name: str
    hub_id: str | None
    layers: int
    hidden_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    min_dimensions: int = MIN_DIMENSIONS
    context: int = CONTEXT
    license: str = "Apache-2.0"
    scores: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def max_dimensions(self) -> int:
        """The dimensions of an uncut vector."""
        return self.hidden_size

    @property
    def source(self) -> str:
        """The hub id, or the folder of the bundled model."""
        return self.hub_id or str(TINY_FOLDER)


MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "tiny": ModelSpec("tiny", None, 3, 256, 8, 4, 64, 512),
        "0.6B": ModelSpec(
            "0.6B",
            "Qwen/Qwen3-Embedding-0.6B",
            28,
            1024,
            16,
            8,
            128,
            3072,
            scores=MappingProxyType({"MMTEB": 64.33}),
        ),
        "4B": ModelSpec(
            "4B",
            "Qwen/Qwen3-Embedding-4B",
            36,
            2560,
            32,
            8,
            128,
            9728,
            scores=MappingProxyType(
                {
                    "MMTEB": 69.45,
                    "MTEB-Code": 80.86,
                    "CMTEB-R": 60.86,
                    "MMTEB-R": 79.36,
                    "MTEB-R": 72.33,
                    "MLDR": 57.15,
                }
            ),
        ),
        "8B": ModelSpec(
            "8B",
            "Qwen/Qwen3-Embedding-8B",
            36,
            4096,
            32,
            8,
            128,
            12288,
            scores=MappingProxyType(
                {
                    "MMTEB": 70.58,
                    "MTEB-Code": 81.08,
                    "CMTEB-R": 61.69,
                    "MMTEB-R": 80.89,
                    "MTEB-R": 74.0,
                    "MLDR": 57.65,
                }
            ),
        ),
    }
)
"""The models by short name."""

BENCHMARKS: Mapping[str, str] = MappingProxyType(
    {
        "MMTEB": "MTEB Multilingual",
        "MTEB-Code": "MTEB code retrieval",
        "CMTEB-R": "Chinese retrieval",
        "MMTEB-R": "multilingual retrieval",
        "MTEB-R": "English retrieval",
        "MLDR": "long-document retrieval",
    }
)
"""What each benchmark in `ModelSpec.scores` measures."""


def find_spec(model: str) -> ModelSpec | None:
    """Look a model up by short name or hub id.

    Args:
        model: a short name ("4B") or a hub id ("Qwen/Qwen3-Embedding-4B").

    Returns:
        The model's facts, or None where it is none of the known ones.
    """
    if model in MODELS:
        return MODELS[model]
    return next((spec for spec in MODELS.values() if spec.hub_id == model), None)
