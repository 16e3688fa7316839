"""The facts about the models."""

from __future__ import annotations

import json

import pytest

from qwen3_embed_integrations import MODELS
from qwen3_embed_integrations.models import BENCHMARKS, TINY_FOLDER, find_spec


def test_tiny_is_what_its_config_says():
    config = json.loads((TINY_FOLDER / "config.json").read_text())
    tiny = MODELS["tiny"]
    assert config["model_type"] == "qwen3"
    assert (tiny.layers, tiny.hidden_size) == (config["num_hidden_layers"], config["hidden_size"])
    assert (tiny.query_heads, tiny.kv_heads) == (config["num_attention_heads"], config["num_key_value_heads"])
    assert (tiny.head_dim, tiny.ffn_size) == (config["head_dim"], config["intermediate_size"])
    assert tiny.context == config["max_position_embeddings"]
    # transformers 5 writes the second, transformers 4 and most servers read the first.
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


@pytest.mark.parametrize(
    ("name", "layers", "hidden_size", "ffn_size"),
    [("0.6B", 28, 1024, 3072), ("4B", 36, 2560, 9728), ("8B", 36, 4096, 12288)],
)
def test_the_official_models(name, layers, hidden_size, ffn_size):
    spec = MODELS[name]
    assert (spec.layers, spec.hidden_size, spec.ffn_size) == (layers, hidden_size, ffn_size)
    assert (spec.min_dimensions, spec.max_dimensions, spec.context) == (32, hidden_size, 32768)
    assert spec.hub_id == f"Qwen/Qwen3-Embedding-{name}"
    assert find_spec(spec.hub_id) is find_spec(name) is spec
    assert set(spec.scores) <= set(BENCHMARKS)


def test_an_unknown_model_has_no_facts():
    assert find_spec("acme/other") is None


def test_the_facts_cannot_be_changed():
    with pytest.raises(TypeError):
        MODELS["5B"] = MODELS["4B"]
    with pytest.raises(TypeError):
        MODELS["4B"].scores["MMTEB"] = 100
    with pytest.raises(AttributeError):
        MODELS["4B"].layers = 1
