"""The corpus as arrays, targets in the student's space, and batches of like lengths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.tiny.student import CONSTANT_DIM

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

MAX_TOKENS = 256
KINDS = ("prose", "code", "general")
CODE = KINDS.index("code")
# One dimension of the target says code or prose, so that an instruction can ask for one of them.
MODALITY_DIM = 31
MODALITY_SHARE = 0.15
CONTENT_DIMS = [i for i in range(CONSTANT_DIM) if i != MODALITY_DIM]


@dataclass(frozen=True)
class Corpus:
    """Texts, pairs and what is known about each text.

    Attributes:
        texts: distinct texts.
        held_out: which texts training must not see.
        is_code: which texts are code.
        pairs: columns query, positive, twin, and kind: prose (0), code (1) or general knowledge (2).
        pair_held_out: which pairs training must not see.
    """

    texts: list[str]
    held_out: NDArray[np.bool_]
    is_code: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    pair_held_out: NDArray[np.bool_]

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """Read what build-corpus wrote."""
        rows = [json.loads(line) for line in (folder / "texts.jsonl").open()]
        pairs = [json.loads(line) for line in (folder / "pairs.jsonl").open()]
        is_code = np.zeros(len(rows), bool)
        is_code[[pair["positive"] for pair in pairs if pair["kind"] == "code"]] = True
        return cls(
            texts=[row["text"] for row in rows],
            held_out=np.array([row["held_out"] for row in rows]),
            is_code=is_code,
            pairs=np.array([(p["query"], p["positive"], p["twin"], KINDS.index(p["kind"])) for p in pairs]),
            pair_held_out=np.array([pair["held_out"] for pair in pairs]),
        )


def fit_rotation(labels: NDArray[np.float16], seed: int = 0) -> NDArray[np.float32]:
    """Find the teacher's principal directions, which keep cosines and put the most telling ones first.

    They are where training starts; `rotation.learn` finds better ones for cut vectors.

    Args:
        labels: teacher vectors, shape (n, 384).
        seed: of the sample.

    Returns:
        Shape (384, number of content dimensions).
    """
    rows = np.random.default_rng(seed).choice(len(labels), min(len(labels), 100_000), replace=False)
    sample = labels[np.sort(rows)].astype(np.float32)
    _, directions = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(directions[:, ::-1][:, : len(CONTENT_DIMS)])


def targets(labels: Tensor, rotation: Tensor, sign: Tensor) -> Tensor:
    """Give the student's targets: the rotated teacher vectors, and the side of code (+1) or prose (-1).

    Args:
        labels: teacher vectors, shape (n, 384).
        rotation: from fit_rotation.
        sign: +1 for code and queries for it, -1 for prose and queries for it, shape (n,).

    Returns:
        Unit vectors, shape (n, 256).
    """
    content = torch.nn.functional.normalize(labels.float() @ rotation, dim=-1)
    result = torch.zeros(len(labels), CONSTANT_DIM + 1)
    result[:, CONTENT_DIMS] = content * (1 - MODALITY_SHARE) ** 0.5
    result[:, MODALITY_DIM] = sign * MODALITY_SHARE**0.5
    return result


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Turn texts into ids that end in the end token, also when they are cut."""
    tokenizer.enable_truncation(MAX_TOKENS)
    result: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), 10_000):
        encodings = tokenizer.encode_batch(list(texts[start : start + 10_000]))
        result.extend(np.array(encoding.ids, np.int32) for encoding in encodings)
    return result


def pad(ids: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Stack ids with padding on the right.

    Returns:
        Token ids, shape (batch, longest), and each text's last position.
    """
    lengths = np.array([len(row) for row in ids])
    batch = np.zeros((len(ids), int(lengths.max())), np.int64)
    for row, tokens in enumerate(ids):
        batch[row, : len(tokens)] = tokens
    return torch.from_numpy(batch), torch.from_numpy(lengths - 1)


def clusters(labels: NDArray[np.float16], count: int, seed: int = 0, rounds: int = 6) -> NDArray[np.int64]:
    """Group texts by topic (spherical k-means on the teacher's vectors).

    Args:
        labels: teacher vectors, shape (n, 384).
        count: clusters.
        seed: of the first centres.
        rounds: of k-means, on a sample of 60,000.

    Returns:
        The cluster of each text, shape (n,).
    """
    rng = np.random.default_rng(seed)
    sample = labels[np.sort(rng.choice(len(labels), min(len(labels), 60_000), replace=False))].astype(np.float32)
    centres = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(rounds):
        nearest = (sample @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    parts = [labels[i : i + 20_000].astype(np.float32) @ centres.T for i in range(0, len(labels), 20_000)]
    return np.concatenate([part.argmax(1) for part in parts])


def length_batches(
    lengths: NDArray[np.int64], groups: NDArray[np.int64], tokens: int, rng: random.Random
) -> Iterator[NDArray[np.int64]]:
    """Yield batches of texts of one group and like lengths, in random order.

    Args:
        lengths: tokens of each text.
        groups: group of each text; a batch keeps to one.
        tokens: tokens of a batch, padding included.
        rng: the order's source.

    Yields:
        Indices of the texts.
    """
    jitter = np.array([rng.random() * 4 for _ in lengths])
    order = np.lexsort((lengths + jitter, groups))
    batches, start = [], 0
    while start < len(order):
        stop, longest = start + 1, lengths[order[start]]
        while stop < len(order) and groups[order[stop]] == groups[order[start]]:
            longest = max(longest, lengths[order[stop]])
            if (stop + 1 - start) * longest > tokens:
                break
            stop += 1
        batches.append(order[start:stop])
        start = stop
    rng.shuffle(batches)
    yield from batches
