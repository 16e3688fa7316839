"""A random-weight model in the shape of an official one: weights change neither the time nor what a wrapper drops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3Model

from qwen3_embed_integrations import MODELS
from qwen3_embed_integrations.models import TINY_FOLDER

VOCABULARY = 151_669  # of the official tokenizer; the bundled one uses the first rows


def make(folder: Path, shape: str = "0.6B", *, seed: int = 0) -> Path:
    """Write a model in bfloat16, as the official ones are stored, with the bundled tokenizer.

    Args:
        folder: where to write; a model that is there already is kept.
        shape: a name in `MODELS`.
        seed: of the random weights.

    Returns:
        The folder.
    """
    if (folder / "model.safetensors").exists():
        return folder
    spec = MODELS[shape]
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.query_heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context,
        tie_word_embeddings=True,
        use_cache=False,
    )
    Qwen3Model(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "config_sentence_transformers.json"):
        shutil.copy(TINY_FOLDER / name, folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": spec.hidden_size, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder
