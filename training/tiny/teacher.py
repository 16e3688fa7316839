"""The teacher, all-MiniLM-L6-v2: labels the corpus with its vectors."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from training.tiny.student import DTYPE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

DIMENSIONS = 384
MAX_TOKENS = 256
BATCH_TOKENS = 4096
SHARD = 20_000
SAMPLE = 120_000


class Teacher:
    """all-MiniLM-L6-v2 in `DTYPE`, with mean pooling.

    Args:
        folder: the unpacked model.
        threads: batches at a time, each on one thread, which shared cores disturb less than threads within a batch.
    """

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._model = AutoModel.from_pretrained(folder, dtype=DTYPE, attn_implementation="sdpa").eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    @torch.inference_mode()
    def _embed(self, ids: Sequence[list[int]]) -> NDArray[np.float16]:
        tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, text in enumerate(ids):
            tokens[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1).half().numpy()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embed texts, batched by length.

        Args:
            texts: any number of them; each is cut at 256 tokens.

        Returns:
            Unit vectors, float16, shape (n, 384), in the order of the texts.
        """
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        batches, start = [], 0
        while start < len(order):
            rows = max(1, BATCH_TOKENS // len(ids[order[start]]))
            batches.append(order[start : start + rows])
            start += rows
        vectors = np.zeros((len(ids), DIMENSIONS), np.float16)
        for batch, found in zip(
            batches, self._pool.map(lambda batch: self._embed([ids[i] for i in batch]), batches), strict=True
        ):
            vectors[batch] = found
        return vectors


def label_order(count: int, pairs: NDArray[np.int64], held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Decide which texts are labelled first, so that a limit leaves whole pairs and a fair sample.

    Args:
        count: texts of the corpus.
        pairs: columns query, positive, twin or -1, and kind.
        held_out: which texts need no label.

    Returns:
        Indices of texts: a random sample, then pairs, in which code comes early.
    """
    rng = np.random.default_rng(0)
    sample = rng.permutation(count)[:SAMPLE]
    keys = np.random.default_rng(1).random(len(pairs)) * np.where(pairs[:, 3] == 1, 0.5, 1.0)
    paired = pairs[np.argsort(keys), :3].ravel()
    rest = np.concatenate([paired[paired >= 0], np.arange(count)])
    rest = rest[~held_out[rest]]
    merged = np.concatenate([sample, rest])
    _, first = np.unique(merged, return_index=True)
    return merged[np.sort(first)]


def label(
    folder: Path, teacher_folder: Path, texts: Sequence[str], order: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Label texts shard by shard, leaving out those that have a label already.

    Args:
        folder: the work folder; labels.npy is made in it.
        teacher_folder: the unpacked teacher.
        texts: the corpus.
        order: from label_order.
        limit: labels to make.

    Returns:
        Unit vectors, float16, shape (n, 384), and which of them there are.
    """
    path = folder / "labels.npy"
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float16, (len(texts), DIMENSIONS)).flush()
    labels = np.lib.format.open_memmap(path, "r+")
    labelled = np.concatenate([labels[i : i + SHARD].any(1) for i in range(0, len(labels), SHARD)])
    missing = order[~labelled[order]][: max(0, limit - int(labelled.sum()))]
    teacher = Teacher(teacher_folder) if len(missing) else None
    for start in range(0, len(missing), SHARD):
        began = time.monotonic()
        rows = missing[start : start + SHARD]
        labels[rows] = teacher.encode([texts[i] for i in rows])
        labels.flush()
        labelled[rows] = True
        log.info("labelled %d, %.0f texts/s", labelled.sum(), len(rows) / (time.monotonic() - began))
    return labels, labelled
