"""Index and search with Haystack pipelines, and save one as YAML. Run: python examples/haystack_rag.py."""

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from qwen3_embed_integrations.haystack import Qwen3DocumentEmbedder, Qwen3TextEmbedder

DOCUMENTS = [
    Document(content="Paid within five working days to the card that was charged.", meta={"title": "Refunds"}),
    Document(content="Parcels leave our warehouse on the day of the order.", meta={"title": "Shipping"}),
    Document(content="Passwords are reset from the sign-in page.", meta={"title": "Account"}),
]
MODEL = "tiny"  # "0.6B", "4B" or "8B" for real use

store = InMemoryDocumentStore(embedding_similarity_function="cosine")
indexing = Pipeline()
indexing.add_component("embedder", Qwen3DocumentEmbedder(MODEL, meta_fields_to_embed=["title"]))
indexing.add_component("writer", DocumentWriter(store))
indexing.connect("embedder", "writer")
indexing.run({"embedder": {"documents": DOCUMENTS}})

search = Pipeline()
search.add_component("embedder", Qwen3TextEmbedder(MODEL))
search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
search.connect("embedder.embedding", "retriever.query_embedding")

question = "when do I get my money back?"
for document in search.run({"embedder": {"text": question}})["retriever"]["documents"]:
    print(f"{document.score:.3f} {document.meta['title']}: {document.content}")

embedders = Pipeline()
embedders.add_component("embedder", Qwen3TextEmbedder(MODEL, dimensions=64))
restored = Pipeline.loads(embedders.dumps())
same = restored.run({"embedder": {"text": question}}) == embedders.run({"embedder": {"text": question}})
print(f"the same vector after a round trip through YAML: {same}")
