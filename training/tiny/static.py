"""The start: a vector for each token, fitted so that a text's mean token vector is the teacher's vector."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.tiny.data import CONTENT_DIMS
from training.tiny.losses import distillation
from training.tiny.student import CONSTANT_DIM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from training.tiny.teacher import Teacher

log = logging.getLogger(__name__)

SMOOTHING = 1e-3
BATCH, BANK = 1024, 2048


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """Give every token as the text that it stands for."""
    return [tokenizer.decode([i]).strip() for i in range(tokenizer.get_vocab_size())]


def start_vectors(
    tokenizer: Tokenizer, teacher: Teacher, rotation: NDArray[np.float32], ids: Sequence[NDArray[np.int32]]
) -> Tensor:
    """Give the teacher's vectors of the single tokens, shortened by how common the token is (SIF weights).

    Args:
        tokenizer: the student's.
        teacher: embeds the tokens' texts.
        rotation: from data.fit_rotation.
        ids: the corpus, for the tokens' frequencies.

    Returns:
        Shape (vocabulary, 255).
    """
    counts = np.bincount(np.concatenate(list(ids)), minlength=tokenizer.get_vocab_size()).astype(np.float64)
    weights = SMOOTHING / (SMOOTHING + counts / counts.sum())
    content = teacher.encode(token_texts(tokenizer)).astype(np.float32) @ rotation
    vectors = torch.zeros(len(content), CONSTANT_DIM)
    vectors[:, CONTENT_DIMS] = torch.from_numpy(content * weights[:, None].astype(np.float32))
    return vectors


def fit(
    vectors: Tensor,
    ids: Sequence[NDArray[np.int32]],
    target: Tensor,
    epochs: float,
    seed: int = 0,
    rate: float = 8e-3,
) -> Tensor:
    """Fit the token vectors to the labels as an embedding bag, which takes seconds where a model takes hours.

    Args:
        vectors: from start_vectors.
        ids: the training texts' tokens.
        target: the training texts' targets, shape (n, 256).
        epochs: passes over the texts.
        seed: of the order.
        rate: the highest learning rate.

    Returns:
        Fitted vectors, shape (vocabulary, 255).
    """
    rng = np.random.default_rng(seed)
    bag = torch.nn.EmbeddingBag.from_pretrained(torch.nn.functional.pad(vectors, (0, 1)), freeze=False, mode="mean")
    optimizer = torch.optim.Adam(bag.parameters(), lr=rate)
    steps = int(len(ids) * epochs) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.1)
    order: list[int] = []
    total = 0.0
    for step in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(ids)).tolist()
        batch, order = order[:BATCH], order[BATCH:]
        tokens = [ids[i] for i in batch]
        offsets = np.cumsum([0] + [len(row) for row in tokens[:-1]])
        output = bag(torch.from_numpy(np.concatenate(tokens)).long(), torch.from_numpy(offsets).long())
        bank = target[random.Random(step).sample(range(len(target)), BANK)]
        loss = distillation(output, target[batch], bank)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 99:
            log.info("static %d of %d: loss %.4f", step + 1, steps, total / 100)
            total = 0.0
    return bag.weight.detach()[:, :CONSTANT_DIM]
