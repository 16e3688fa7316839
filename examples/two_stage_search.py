"""Search a FAISS index in two stages from LangChain and LlamaIndex, save it and load it again.

Run: python examples/two_stage_search.py, with llama-index-vector-stores-faiss installed.
"""

import tempfile
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode
from llama_index.vector_stores.faiss import FaissVectorStore

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.demo import standard_library
from qwen3_embed_integrations.index import load_index, save_index
from qwen3_embed_integrations.index_file import FingerprintError
from qwen3_embed_integrations.langchain import Qwen3Embeddings, Qwen3VectorStore
from qwen3_embed_integrations.llama_index import Qwen3Embedding
from qwen3_embed_integrations.matryoshka import two_stage_index

SMALL = 64  # 256 with the 0.6B, 4B and 8B
QUESTION = "copy a whole directory tree"
encoder = Qwen3Encoder("tiny", query_instruction="code_search")
entries = [entry for entry in standard_library() if entry.name.startswith(("os.", "shutil.", "json.", "csv."))]
folder = Path(tempfile.mkdtemp())

# LangChain: the store saves texts and index together.
embeddings = Qwen3Embeddings(encoder=encoder)
store = Qwen3VectorStore(embeddings, two_stage_index(encoder.dimensions, SMALL))
store.add_texts([entry.text for entry in entries], [{"name": entry.name} for entry in entries])
store.save_local(folder / "langchain")
loaded = Qwen3VectorStore.load_local(folder / "langchain", embeddings)
print("LangChain:", [found.metadata["name"] for found in loaded.similarity_search(QUESTION, k=3)])

# LlamaIndex: its own FAISS store, around the same kind of index.
embed_model = Qwen3Embedding(encoder=encoder)
context = StorageContext.from_defaults(vector_store=FaissVectorStore(two_stage_index(encoder.dimensions, SMALL)))
nodes = [
    TextNode(text=entry.text, metadata={"name": entry.name}, excluded_embed_metadata_keys=["name"]) for entry in entries
]
index = VectorStoreIndex(nodes, storage_context=context, embed_model=embed_model)
index.storage_context.persist(str(folder / "llama_index"))
save_index(index.vector_store.client, folder / "llama_index" / "index.faiss", encoder)

vectors = FaissVectorStore(load_index(folder / "llama_index" / "index.faiss", encoder))
context = StorageContext.from_defaults(vector_store=vectors, persist_dir=str(folder / "llama_index"))
index = load_index_from_storage(context, embed_model=embed_model)
hits = index.as_retriever(similarity_top_k=3).retrieve(QUESTION)
print("LlamaIndex:", [hit.node.metadata["name"] for hit in hits])

# An encoder whose vectors can't be compared with those of the index is refused.
try:
    load_index(folder / "llama_index" / "index.faiss", Qwen3Encoder("tiny", document_instruction="code_search"))
except FingerprintError as error:
    print("Refused:", error)
