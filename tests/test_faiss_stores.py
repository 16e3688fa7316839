"""The two-stage index inside the FAISS stores of LlamaIndex and Haystack, saved and loaded."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from haystack import Document, Pipeline
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode
from llama_index.vector_stores.faiss import FaissVectorStore

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder
from qwen3_embed_integrations.index_file import FingerprintError, check_index, load_index, save_index
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from qwen3_embed_integrations.matryoshka import two_stage_index

TEXTS = ["Copy a directory tree.", "Compute a square root.", "Parse the command line.", "Read a file line by line."]
QUESTION = "how do I copy a folder?"


@pytest.fixture(scope="module")
def encoder():
    return Qwen3Encoder("tiny", dtype="float32")


@pytest.fixture(scope="module")
def expected(encoder):
    """Texts by cosine, best first, from the vectors themselves."""
    cosines = encoder.encode_documents(TEXTS) @ encoder.encode_queries([QUESTION])[0]
    order = np.argsort(-cosines)
    return [TEXTS[place] for place in order], cosines[order]


def test_llama_index(encoder, expected, tmp_path):
    model = Qwen3Embedding(encoder=encoder)
    context = StorageContext.from_defaults(vector_store=FaissVectorStore(two_stage_index(encoder.dimensions, 64)))
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], storage_context=context, embed_model=model)
    index.storage_context.persist(str(tmp_path))
    save_index(index.vector_store.client, tmp_path / "vectors.faiss", encoder)

    with pytest.raises(FingerprintError):
        load_index(tmp_path / "vectors.faiss", Qwen3Encoder("tiny", dimensions=64))
    store = FaissVectorStore(load_index(tmp_path / "vectors.faiss", encoder))
    loaded = load_index_from_storage(
        StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path)), embed_model=model
    )
    for searched in (index, loaded):
        found = searched.as_retriever(similarity_top_k=4).retrieve(QUESTION)
        assert [hit.node.text for hit in found] == expected[0]
        np.testing.assert_allclose([hit.score for hit in found], expected[1], atol=1e-3)


@pytest.fixture(scope="module")
def haystack_faiss(tmp_path_factory):
    """Haystack's integration with FAISS, apart: what it requires holds numpy below 2, which others need."""
    folder = tmp_path_factory.mktemp("packages")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        "faiss-haystack",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        pytest.skip(f"faiss-haystack can't be installed: {done.stderr.strip().splitlines()[-1]}")
    sys.path.append(str(folder))
    yield
    sys.path.remove(str(folder))


def test_haystack(haystack_faiss, encoder, expected, tmp_path):
    from haystack_integrations.components.retrievers.faiss import FAISSEmbeddingRetriever
    from haystack_integrations.document_stores.faiss import FAISSDocumentStore

    path = tmp_path / "store"
    # The store's scores are those of the index, unless it is called "Flat".
    store = FAISSDocumentStore(index_string="HNSW32", embedding_dim=encoder.dimensions)
    store.index = two_stage_index(encoder.dimensions, 64, with_ids=True)
    documents = [Document(content=text) for text in TEXTS]
    store.write_documents(Qwen3DocumentEmbedder(encoder=encoder, progress_bar=False).run(documents)["documents"])
    store.save(path)
    save_index(store.index, path.with_suffix(".faiss"), encoder)

    with pytest.raises(FingerprintError):
        check_index(path.with_suffix(".faiss"), Qwen3Encoder("tiny", dimensions=64))
    check_index(path.with_suffix(".faiss"), encoder)
    loaded = FAISSDocumentStore(index_path=str(path), index_string="HNSW32", embedding_dim=encoder.dimensions)
    for searched in (store, loaded):
        pipeline = Pipeline()
        pipeline.add_component("embedder", Qwen3TextEmbedder(encoder=encoder))
        pipeline.add_component("retriever", FAISSEmbeddingRetriever(document_store=searched, top_k=4))
        pipeline.connect("embedder.embedding", "retriever.query_embedding")
        found = pipeline.run({"embedder": {"text": QUESTION}})["retriever"]["documents"]
        assert [document.content for document in found] == expected[0]
        np.testing.assert_allclose([document.score for document in found], expected[1], atol=1e-3)
