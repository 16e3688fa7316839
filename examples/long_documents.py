"""Find what stands deep inside a long document: cut off, as one mean vector, and through windows.

The documents are the docstrings of Python's standard library, bound into volumes of 16,000 tokens. `tiny` reads short
texts best, hence windows of 512 tokens; the real models take the default of 20,000 with an overlap of 2,000.
"""

import time

import numpy as np

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.demo import standard_library

ANSWERS = {
    "close matches of a misspelled word": "difflib.get_close_matches",
    "run a command and capture what it prints": "subprocess.run",
    "wrap a paragraph of text to a width": "textwrap.wrap",
    "measure the execution time of small code snippets": "timeit.timeit",
}

encoder = Qwen3Encoder("tiny", query_instruction="code_search", max_tokens=512)
entries = [entry for entry in standard_library() if entry.name.count(".") == 1]
ends = np.cumsum(encoder.count_tokens([entry.text for entry in entries]))
volumes = ["\n\n".join(entry.text for entry, end in zip(entries, ends, strict=True) if end // 16_000 == number)
           for number in range(int(ends[-1]) // 16_000 + 1)]  # fmt: skip

# A document's rank is that of its best vector, whichever way it got its vectors.
encoder.warm_up()
vectors, owners, spans, costs = {}, {}, [], {}
for policy in ("truncate", "chunk", "windows"):
    start = time.perf_counter()
    if policy == "windows":
        found = [encoder.encode_long_document(volume, 512, 64) for volume in volumes]
        spans = [span for windows in found for span, _ in windows]
        vectors[policy] = np.stack([vector for windows in found for _, vector in windows])
        owners[policy] = np.repeat(np.arange(len(volumes)), [len(windows) for windows in found])
    else:
        vectors[policy] = encoder.replaced(long_text=policy).encode_documents(volumes)
        owners[policy] = np.arange(len(volumes))
    costs[policy] = time.perf_counter() - start
print(f"{len(volumes)} documents of {len(entries)} functions and classes, {ends[-1]:,} tokens\n")

print(f"{'rank of the document that answers':52}truncate  chunk  windows  characters that the best window covers")
for question, name in ANSWERS.items():
    right = next(number for number, volume in enumerate(volumes) if f"{name}(" in volume)
    query = encoder.encode_queries([question])[0]
    ranks = []
    for policy, matrix in vectors.items():
        scores = matrix @ query
        best = np.array([scores[owners[policy] == number].max() for number in range(len(volumes))])
        ranks.append(int((best > best[right]).sum()) + 1)
    place = spans[int(np.where(owners["windows"] == right, vectors["windows"] @ query, -1).argmax())]
    shown = f"{place.start:,} to {place.end:,}"
    if name in volumes[right][place.start : place.end]:
        shown += f", with {name}"
    print(f"{question:52}{ranks[0]:8}{ranks[1]:7}{ranks[2]:9}  {shown}")

tokens = {
    "truncate": 512 * len(volumes),
    # The overlap of `long_text="chunk"` is a tenth of a window.
    "chunk": sum(span.tokens for volume in volumes for span in encoder.split(volume, 512, 51)),
    "windows": sum(span.tokens for span in spans),
}
print("\npolicy     vectors   tokens  seconds")
for policy in vectors:
    print(f"{policy:11}{len(vectors[policy]):7}{tokens[policy]:9,}{costs[policy]:9.1f}")
