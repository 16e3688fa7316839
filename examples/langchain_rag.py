"""Retrieve passages for a RAG prompt with LangChain. Run: python examples/langchain_rag.py."""

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from qwen3_embed_integrations.langchain import Qwen3Embeddings

DOCUMENTS = [
    Document("Refunds are paid within five working days to the card that was charged.", metadata={"page": "refunds"}),
    Document("Parcels leave our warehouse on the day of the order.", metadata={"page": "shipping"}),
    Document("Passwords are reset from the sign-in page.", metadata={"page": "account"}),
]

embeddings = Qwen3Embeddings(model="tiny")  # "0.6B", "4B" or "8B" for real use
store = InMemoryVectorStore(embeddings)
store.add_documents(DOCUMENTS)

question = "when do I get my money back?"
retriever = store.as_retriever(search_kwargs={"k": 2})
context = retriever.invoke(question)

print("Answer from these passages only:")
for document in context:
    print(f"[{document.metadata['page']}] {document.page_content}")
print(f"Question: {question}")
