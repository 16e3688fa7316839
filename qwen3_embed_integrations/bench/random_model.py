"""A random-weight model in the shape of an official one: weights change neither the time nor what a wrapper drops."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from qwen3_embed_integrations.models import MODELS, TINY_FOLDER

VOCABULARY = 151_669  # of the official tokenizer; the bundled one uses the first rows
SHAPES = ("0.6B", "4B", "tiny")


def default_folder(shape: str) -> Path:
    """Give the folder in the user's cache where a shape's files go.

    Args:
        shape: a name in `SHAPES`.

    Returns:
        A folder that need not exist.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "qwen3-embed-integrations" / "bench" / shape


def make(folder: Path, shape: str = "0.6B", *, seed: int = 0, device: str = "cpu") -> Path:
    """Write a model in bfloat16, as the official ones are stored, with the bundled tokenizer.

    Args:
        folder: where to write; a model that is there already is kept.
        shape: a name in `SHAPES`; "tiny" is the bundled model itself, and nothing is written.
        seed: of the random weights.
        device: where they are drawn: minutes for a large model on a CPU, seconds on a GPU.

    Returns:
        The model's folder.

    Raises:
        ValueError: the model that is there already has another shape.
    """
    if shape == "tiny":
        return TINY_FOLDER
    spec = MODELS[shape]
    # The last file to be written: a folder without it is a write that was interrupted.
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.exists():
        there = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (there["hidden_size"], there["num_hidden_layers"]) != (spec.hidden_size, spec.layers):
            raise ValueError(f"{str(folder)!r} has a model of another shape than {shape}: give another folder")
        return folder
    import torch
    from transformers import Qwen3Config, Qwen3Model

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
    with torch.device(device):
        model = Qwen3Model(config)
    model.bfloat16().save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "config_sentence_transformers.json"):
        shutil.copy(TINY_FOLDER / name, folder)
    pooling.parent.mkdir(exist_ok=True)
    pooling.write_text(json.dumps({"word_embedding_dimension": spec.hidden_size, "pooling_mode_lasttoken": True}))
    return folder
