"""Two-stage search in Qdrant: candidates by a small named vector, ranks by the full one, in one request.

Run: python examples/qdrant_two_stage.py, with qdrant-client installed; --url for a server instead of its local mode.
"""

import argparse

from qdrant_client import QdrantClient, models

from qwen3_embed_integrations import Qwen3Encoder, truncate
from qwen3_embed_integrations.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--url", help="a server's address, such as http://localhost:6333")
arguments = parser.parse_args()

SMALL = 64  # 256 with the 0.6B, 4B and 8B
encoder = Qwen3Encoder("tiny", query_instruction="code_search")
entries = [
    entry for entry in standard_library() if entry.name.startswith(("os.", "shutil.", "json.", "csv.", "zipfile."))
]

client = QdrantClient(url=arguments.url) if arguments.url else QdrantClient(":memory:")
if client.collection_exists("functions"):
    client.delete_collection("functions")
client.create_collection(
    "functions",
    vectors_config={
        # The graph is over the small vectors only; m=0 builds none for the full ones, which rank candidates from disk.
        "small": models.VectorParams(size=SMALL, distance=models.Distance.COSINE),
        "full": models.VectorParams(
            size=encoder.dimensions,
            distance=models.Distance.COSINE,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=0),
        ),
    },
)
full = encoder.encode_documents([entry.text for entry in entries])
client.upload_points(
    "functions",
    [
        models.PointStruct(
            id=place, vector={"small": small.tolist(), "full": vector.tolist()}, payload={"name": entry.name}
        )
        for place, (entry, small, vector) in enumerate(zip(entries, truncate(full, SMALL), full, strict=True))
    ],
)

for question in ("copy a whole directory tree", "read rows of comma-separated values", "make a new directory"):
    query = encoder.encode_queries([question])[0]
    found = client.query_points(
        "functions",
        prefetch=models.Prefetch(query=truncate(query, SMALL).tolist(), using="small", limit=50),
        query=query.tolist(),
        using="full",
        limit=3,
    ).points
    print(f"{question}: " + ", ".join(f"{point.payload['name']} ({point.score:.2f})" for point in found))
