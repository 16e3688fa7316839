"""The space of the targets: which directions of the teacher come first, so that cut vectors rank neighbours well."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import kl_div, normalize

from training.tiny.data import clusters

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

log = logging.getLogger(__name__)

# Topics are dampened: they tell fields apart, of which a search within one field has no use.
DAMPING = 0.5
FIELDS = 60
NEIGHBOURS = 512
WEIGHTS = {32: 1.0, 64: 3.0, 128: 1.0}
TEMPERATURE = 0.05
RATE = 4e-3


def _ranking_loss(queries: Tensor, documents: Tensor, turn: Tensor, sharpness: Tensor, itself: bool) -> Tensor:
    hidden = torch.eye(len(queries), dtype=torch.bool) if itself else torch.zeros(1, 1, dtype=torch.bool)
    wanted = (queries @ documents.T / TEMPERATURE).masked_fill(hidden, -1e4).softmax(-1)
    turned = queries @ turn, documents @ turn
    total = queries.new_zeros(())
    for (size, weight), factor in zip(WEIGHTS.items(), sharpness.exp(), strict=True):
        left, right = (normalize(vectors[:, :size], dim=-1) for vectors in turned)
        scores = (left @ right.T * factor / TEMPERATURE).masked_fill(hidden, -1e4)
        total = total + weight * kl_div(scores.log_softmax(-1), wanted, reduction="batchmean")
    return total


def learn(
    labels: NDArray[np.float16], pairs: NDArray[np.int64], principal: NDArray[np.float32], steps: int, seed: int
) -> NDArray[np.float32]:
    """Turn the principal directions so that 32, 64 and 128 dimensions rank texts of one field as all of them do.

    Principal directions keep a general collection's distances. Within one field they keep far less: at 64 dimensions
    nDCG@10 falls from 0.672 to 0.571 with them and to 0.628 with the learned ones (teacher's vectors, fields not
    learned from, 600 steps).

    Args:
        labels: teacher vectors, shape (n, 384).
        pairs: queries and documents among them, shape (m, 2 or more).
        principal: from data.fit_rotation.
        steps: of learning, each on one field's texts or queries.
        seed: of their order.

    Returns:
        Like `principal`; its columns are orthogonal but for the damping.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    documents = np.unique(pairs[:, 1])
    field = clusters(labels[documents], FIELDS)
    field_of = np.full(len(labels), -1)
    field_of[documents] = field
    start = torch.from_numpy(principal)

    content = normalize(torch.from_numpy(labels[documents].astype(np.float32)) @ start, dim=-1)
    damping = content.std(0) ** -DAMPING
    damped = start * (damping / damping.mean())

    def vectors(rows: NDArray[np.int64]) -> Tensor:
        return normalize(torch.from_numpy(labels[rows].astype(np.float32)) @ damped, dim=-1)

    content = vectors(documents)
    centres = torch.stack([content[torch.from_numpy(field == k)].mean(0) for k in range(FIELDS)])
    residual = content - centres[torch.from_numpy(field)]
    within = torch.linalg.eigh(residual.T @ residual)[1].flip(1)
    skew = torch.zeros(len(within), len(within), requires_grad=True)
    sharpness = torch.zeros(len(WEIGHTS), requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [skew], "lr": RATE}, {"params": [sharpness], "lr": 5 * RATE}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        turn = within @ torch.matrix_exp(skew - skew.T)
        k = rng.integers(FIELDS)
        if step % 2:
            asked = pairs[field_of[pairs[:, 1]] == k]
            asked = asked[rng.permutation(len(asked))[: NEIGHBOURS // 2]]
            loss = _ranking_loss(vectors(asked[:, 0]), vectors(np.unique(asked[:, 1])), turn, sharpness, itself=False)
        else:
            rows = rng.permutation(documents[field == k])[:NEIGHBOURS]
            loss = _ranking_loss(vectors(rows), vectors(rows), turn, sharpness, itself=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            log.info("rotation %d of %d: loss %.4f", step + 1, steps, loss.item())
    with torch.no_grad():
        turn = within @ torch.matrix_exp(skew - skew.T)
        return (damped @ turn).numpy()
