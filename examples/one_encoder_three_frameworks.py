"""Use one encoder in LangChain, LlamaIndex and Haystack. Run: python examples/one_encoder_three_frameworks.py."""

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.haystack import Qwen3TextEmbedder
from qwen3_embed_integrations.langchain import Qwen3Embeddings
from qwen3_embed_integrations.llama_index import Qwen3Embedding

question = "who wrote this?"

encoder = Qwen3Encoder("tiny", dimensions=64, query_instruction="question_answering")
langchain = Qwen3Embeddings(encoder=encoder)
llama_index = Qwen3Embedding(encoder=encoder)
haystack = Qwen3TextEmbedder(encoder=encoder)

vectors = [
    langchain.embed_query(question),
    llama_index.get_query_embedding(question),
    haystack.run(question)["embedding"],
]
print(f"three times the same vector of {len(vectors[0])} floats: {vectors[0] == vectors[1] == vectors[2]}")
print(f"weights in {encoder.dtype} on {encoder.device}, one set in memory")
print(f"a name for caches and indexes: {encoder.fingerprint}")
