"""Cut vectors to fewer dimensions (Matryoshka). Run: python examples/smaller_dimensions.py."""

import numpy as np

from qwen3_embed_integrations import MODELS, Qwen3Encoder, truncate
from qwen3_embed_integrations.demo import standard_library

texts = [entry.text for entry in standard_library() if entry.name.startswith(("os.", "shutil.", "pathlib.", "json."))]
question = "make a new directory"

full = Qwen3Encoder("tiny")
documents = full.encode_documents(texts)
query = full.encode_queries([question])[0]
best = set(np.argsort(-(documents @ query))[:10])

print("dimensions  bytes a vector  unit length  of the ten best found")
for dimensions in (MODELS["tiny"].max_dimensions, 128, 64, 32):
    # The same vectors as those of Qwen3Encoder("tiny", dimensions=dimensions), without embedding again.
    small, small_query = truncate(documents, dimensions), truncate(query, dimensions)
    found = best & set(np.argsort(-(small @ small_query))[:10])
    unit = np.allclose(np.linalg.norm(small, axis=1), 1)
    print(f"{dimensions:10}  {small[0].nbytes:14}  {unit!s:11}  {len(found):21}")
