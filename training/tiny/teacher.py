"""The teacher, all-MiniLM-L6-v2: labels the corpus with its vectors."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

DIMENSIONS = 384
BATCH_TOKENS = 4096
# A compiled model is built for each length, so there are few of them.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)
SHARD = 20_000
SAMPLE = 120_000


class Teacher:
    """all-MiniLM-L6-v2 in bf16, with mean pooling.

    Args:
        folder: the unpacked model.
        compiled: use torch.compile, worth its two minutes for more than some 50,000 texts.
    """

    def __init__(self, folder: Path, *, compiled: bool = False) -> None:
        model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LENGTHS[-1])
        if compiled:
            torch._inductor.config.freezing = True
            torch._dynamo.config.cache_size_limit = 2 * len(LENGTHS)
        self._model = torch.compile(model, dynamic=False) if compiled else model

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """Embed texts, batched by length.

        Args:
            texts: any number of them; each is cut at 256 tokens.

        Returns:
            Unit vectors, float16, shape (n, 384), in the order of the texts.
        """
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        vectors = np.zeros((len(ids), DIMENSIONS), np.float16)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        start = 0
        while start < len(order):
            length = next(size for size in LENGTHS if size >= len(ids[order[start]]))
            rows = BATCH_TOKENS // length
            batch = [i for i in order[start : start + rows] if len(ids[i]) <= length]
            tokens = torch.zeros(rows, length, dtype=torch.long)
            mask = torch.zeros(rows, length, dtype=torch.long)
            mask[:, 0] = 1
            for row, i in enumerate(batch):
                tokens[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=-1)[: len(batch)].half().numpy()
            start += len(batch)
        return vectors


def label_order(count: int, pairs: NDArray[np.int64], held_out: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Decide which texts are labelled first, so that a limit leaves whole pairs and a fair sample.

    Args:
        count: texts of the corpus.
        pairs: columns query, positive, twin or -1, and code (1) or prose (0).
        held_out: which texts need no label.

    Returns:
        Indices of texts: a random sample, then pairs, in which code comes twice as often as in the corpus.
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
    """Label the corpus shard by shard; after an interruption it goes on with the next shard.

    Args:
        folder: the work folder; labels.npy is made in it.
        teacher_folder: the unpacked teacher.
        texts: the corpus.
        order: from label_order.
        limit: labels to make.

    Returns:
        Unit vectors, float16, shape (n, 384), and which of them there are.
    """
    path, progress = folder / "labels.npy", folder / "labels.done"
    if not path.exists():
        np.lib.format.open_memmap(path, "w+", np.float16, (len(texts), DIMENSIONS)).flush()
    labels = np.lib.format.open_memmap(path, "r+")
    limit = min(limit, len(order))
    done = int(progress.read_text()) if progress.exists() else 0
    teacher = Teacher(teacher_folder, compiled=True) if done < limit else None
    for start in range(done, limit, SHARD):
        began = time.monotonic()
        rows = order[start : min(start + SHARD, limit)]
        labels[rows] = teacher.encode([texts[i] for i in rows])
        labels.flush()
        done = start + len(rows)
        progress.write_text(str(done))
        log.info("labelled %d of %d, %.0f texts/s", done, limit, len(rows) / (time.monotonic() - began))
    labelled = np.zeros(len(texts), bool)
    labelled[order[:limit]] = True
    return labels, labelled
