"""Search code with an instruction for code. Run: python examples/code_search.py "sort by several columns"."""

import sys

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.demo import standard_library

question = sys.argv[1] if len(sys.argv) > 1 else "compare two files line by line"

# Functions with their docstrings, and their newlines: what a query finds depends on them.
entries = [entry for entry in standard_library() if entry.name.startswith(("difflib.", "filecmp.", "csv.", "heapq."))]
encoder = Qwen3Encoder("tiny", query_instruction="code_search")  # "Find functions that:"
documents = encoder.encode_documents([entry.text for entry in entries])

scores = documents @ encoder.encode_queries([question])[0]
for position in scores.argsort()[::-1][:5]:
    print(f"{scores[position]:.3f} {entries[position].name}{entries[position].signature}")

# An instruction can also be given to one call, as a name or a sentence of your own.
other = encoder.encode_queries([question], instruction="Find tests that check:")[0]
print(f"cosine to the same question under another instruction: {other @ encoder.encode_queries([question])[0]:.3f}")
