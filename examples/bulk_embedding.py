"""Embed many rows into Parquet files, and go on after a loss. Run: python examples/bulk_embedding.py."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.dataset as ds

from qwen3_embed_integrations import Qwen3Encoder
from qwen3_embed_integrations.bulk import embed_files
from qwen3_embed_integrations.demo import standard_library

encoder = Qwen3Encoder("tiny")
with TemporaryDirectory() as folder:
    source, destination = Path(folder) / "documents.jsonl", Path(folder) / "vectors"
    entries = [entry for entry in standard_library() if entry.name.startswith("shutil.")]
    lines = [json.dumps({"name": entry.name, "text": entry.text}) + "\n" for entry in entries]
    source.write_text("".join(lines), encoding="utf-8")

    report = embed_files(source, destination, encoder=encoder, part_rows=16)
    print(f"{report.rows} rows in {report.parts} files, {report.embedded_rows} embedded")

    # A part that is lost, to a crash say, is all that the next run embeds.
    next(destination.glob("*.parquet")).unlink()
    report = embed_files(source, destination, encoder=encoder, part_rows=16)
    print(f"{report.rows} rows in {report.parts} files, {report.embedded_parts} of them embedded now")

    table = ds.dataset(destination, format="parquet").to_table()
    vectors = np.stack(table.column("embedding").to_numpy())
    query = encoder.encode_queries(["copy a whole directory tree"], instruction="code_search")[0]
    print(table.column("name")[int(np.argmax(vectors @ query))])
