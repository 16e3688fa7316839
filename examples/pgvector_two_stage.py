"""Two-stage search in PostgreSQL with pgvector: candidates by an index over the first components, ranks by all of them.

Run: python examples/pgvector_two_stage.py postgresql://user:password@host/database, with psycopg and pgvector (the
Python package, and the extension from 0.7 on) installed.
"""

import argparse

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("url", help="the database's address; a table named functions there is replaced")
arguments = parser.parse_args()

SMALL = 64  # 256 with the 0.6B, 4B and 8B
encoder = Qwen3Encoder("tiny", query_instruction="code_search")
entries = [
    entry for entry in standard_library() if entry.name.startswith(("os.", "shutil.", "json.", "csv.", "zipfile."))
]

with psycopg.connect(arguments.url, autocommit=True) as connection:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    register_vector(connection)
    connection.execute("DROP TABLE IF EXISTS functions")
    connection.execute(
        f"CREATE TABLE functions (id bigint PRIMARY KEY, name text, embedding halfvec({encoder.dimensions}))"
    )
    vectors = encoder.encode_documents([entry.text for entry in entries])
    with connection.cursor().copy("COPY functions (id, name, embedding) FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "text", "halfvec"])
        for place, (entry, vector) in enumerate(zip(entries, vectors, strict=True)):
            copy.write_row([place, entry.name, HalfVector(vector)])
    # Cosine distance divides by the length of what was cut, so nothing has to be normalised again.
    small = f"subvector(embedding, 1, {SMALL})::halfvec({SMALL})"
    connection.execute(f"CREATE INDEX ON functions USING hnsw (({small}) halfvec_cosine_ops)")

    for question in ("copy a whole directory tree", "read rows of comma-separated values", "make a new directory"):
        query = HalfVector(encoder.encode_queries([question])[0])
        found = connection.execute(
            f"""
            SELECT name, -(embedding <#> %(query)s) AS cosine
            FROM (
                SELECT name, embedding FROM functions
                ORDER BY {small} <=> subvector(%(query)s, 1, {SMALL})::halfvec({SMALL}) LIMIT 50
            ) AS candidates
            ORDER BY cosine DESC LIMIT 3
            """,
            {"query": query},
        ).fetchall()
        print(f"{question}: " + ", ".join(f"{name} ({cosine:.2f})" for name, cosine in found))
