"""Retrieve passages for a RAG prompt with LlamaIndex. Run: python examples/llama_index_rag.py."""

from llama_index.core import Document, VectorStoreIndex

from qwen3_embed_integrations.llama_index import Qwen3Embedding

DOCUMENTS = [
    Document(text="Refunds are paid within five working days to the card that was charged."),
    Document(text="Parcels leave our warehouse on the day of the order."),
    Document(text="Passwords are reset from the sign-in page."),
]

embedding = Qwen3Embedding(model="tiny")  # "0.6B", "4B" or "8B" for real use
index = VectorStoreIndex.from_documents(DOCUMENTS, embed_model=embedding)

question = "when do I get my money back?"
hits = index.as_retriever(similarity_top_k=2).retrieve(question)

print("Answer from these passages only:")
for hit in hits:
    print(f"{hit.score:.3f} {hit.text}")
print(f"Question: {question}")
