"""Two-stage search in Milvus: candidates by a small vector field, ranks by the full one.

Run: python examples/milvus_two_stage.py, with pymilvus and milvus-lite installed; --uri for a server instead of a file.
"""

import argparse
import tempfile
from pathlib import Path

from pymilvus import DataType, MilvusClient

from qwen3_embed_integrations import Qwen3Encoder, truncate
from qwen3_embed_integrations.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--uri", help="a server's address, such as http://localhost:19530")
arguments = parser.parse_args()

SMALL = 64  # 256 with the 0.6B, 4B and 8B
encoder = Qwen3Encoder("tiny", query_instruction="code_search")
entries = [
    entry for entry in standard_library() if entry.name.startswith(("os.", "shutil.", "json.", "csv.", "zipfile."))
]

client = MilvusClient(arguments.uri or str(Path(tempfile.mkdtemp()) / "functions.db"))
if client.has_collection("functions"):
    client.drop_collection("functions")
schema = client.create_schema()
schema.add_field("id", DataType.INT64, is_primary=True)
schema.add_field("name", DataType.VARCHAR, max_length=200)
schema.add_field("small", DataType.FLOAT_VECTOR, dim=SMALL)
schema.add_field("full", DataType.FLOAT_VECTOR, dim=encoder.dimensions)
indexes = client.prepare_index_params()
# Milvus Lite has FLAT and AUTOINDEX; on a server, HNSW for the small vectors.
indexes.add_index("small", index_type="HNSW" if arguments.uri else "AUTOINDEX", metric_type="IP")
indexes.add_index("full", index_type="FLAT", metric_type="IP")
client.create_collection("functions", schema=schema, index_params=indexes)

full = encoder.encode_documents([entry.text for entry in entries])
client.insert(
    "functions",
    [
        {"id": place, "name": entry.name, "small": small.tolist(), "full": vector.tolist()}
        for place, (entry, small, vector) in enumerate(zip(entries, truncate(full, SMALL), full, strict=True))
    ],
)

for question in ("copy a whole directory tree", "read rows of comma-separated values", "make a new directory"):
    query = encoder.encode_queries([question])[0]
    candidates = client.search("functions", [truncate(query, SMALL).tolist()], anns_field="small", limit=50)[0]
    found = client.search(
        "functions",
        [query.tolist()],
        anns_field="full",
        filter=f"id in {[hit['id'] for hit in candidates]}",
        limit=3,
        output_fields=["name"],
    )[0]
    print(f"{question}: " + ", ".join(f"{hit['entity']['name']} ({hit['distance']:.2f})" for hit in found))
