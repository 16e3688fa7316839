"""Three adapters of three frameworks over one set of weights."""

from __future__ import annotations

import shutil

from haystack import Document

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.engine import engine as engine_module
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.llama_index import Qwen3Embedding


def test_adapters_with_three_dimensions_hold_one_set_of_weights(model_folder, tmp_path, monkeypatch):
    loads = []
    load = engine_module._load
    monkeypatch.setattr(
        engine_module, "_load", lambda settings, folder: loads.append(settings) or load(settings, folder)
    )
    folder = str(shutil.copytree(model_folder, tmp_path / "own"))
    langchain = Qwen3Embeddings(model=folder, dimensions=32)
    llama_index = Qwen3Embedding(model=folder, dimensions=48)
    haystack = Qwen3TextEmbedder(folder, dimensions=64)
    documents = Qwen3DocumentEmbedder(folder, progress_bar=False)
    assert loads == []
    assert len(langchain.embed_query("x")) == 32
    assert len(llama_index.get_query_embedding("x")) == 48
    assert len(haystack.run("x")["embedding"]) == 64
    assert len(documents.run([Document(content="x")])["documents"][0].embedding) == 64
    assert len(loads) == 1
    engines = {adapter.encoder._engine() for adapter in (langchain, llama_index, haystack, documents)}
    assert len(engines) == 1
    weights = {id(engine.load()) for engine in engines}
    other = Qwen3Encoder(folder, dtype="float16")
    other.warm_up()
    assert id(other._engine().load()) not in weights
    assert len(loads) == 2
