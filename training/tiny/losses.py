"""Losses at the Matryoshka dimensions: the teacher's vectors, its similarities, and the right answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax

from training.tiny.data import MODALITY_DIM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

DIMENSIONS = (32, 64, 128, 256)
TEMPERATURE = 0.05


def distillation(student: Tensor, target: Tensor, bank: Tensor, dimensions: Sequence[int] = DIMENSIONS) -> Tensor:
    """Pull each vector to its target, and its ranking of a bank of targets to the target's own full ranking.

    The bank stands for other texts' student vectors at no cost, since the student shares the targets' space.

    Args:
        student: vectors of any length, shape (n, 256).
        target: unit vectors, shape (n, 256).
        bank: targets of other texts, shape (m, 256).
        dimensions: where vectors are cut.

    Returns:
        The mean over the dimensions.
    """
    wanted = softmax(target @ bank.T / TEMPERATURE, -1)
    total = student.new_zeros(())
    for size in dimensions:
        head = normalize(student[:, :size], dim=-1)
        cosine = (head * normalize(target[:, :size], dim=-1)).sum(-1)
        ranking = log_softmax(head @ normalize(bank[:, :size], dim=-1).T / TEMPERATURE, -1)
        total = total + 2 * (1 - cosine).mean() + kl_div(ranking, wanted, reduction="batchmean")
    return total / len(dimensions)


def neighbours(student: Tensor, target: Tensor) -> Tensor:
    """Make the batch's texts rank each other as their targets do, at each dimension.

    Args:
        student: vectors of any length, shape (n, 256).
        target: unit vectors, shape (n, 256).

    Returns:
        The mean over the dimensions.
    """
    itself = torch.eye(len(student), dtype=torch.bool)
    wanted = (target @ target.T / TEMPERATURE).masked_fill(itself, -1e4).softmax(-1)
    total = student.new_zeros(())
    for size in DIMENSIONS:
        head = normalize(student[:, :size], dim=-1)
        ranking = log_softmax((head @ head.T / TEMPERATURE).masked_fill(itself, -1e4), -1)
        total = total + kl_div(ranking, wanted, reduction="batchmean")
    return total / len(DIMENSIONS)


def modality(student: Tensor, target: Tensor) -> Tensor:
    """Keep the dimension of code and prose the same for all code and for all prose.

    Where it varies, a query for the other kind ranks texts by it instead of by what they say.

    Args:
        student: vectors of any length, shape (n, 256).
        target: unit vectors, shape (n, 256).

    Returns:
        The mean squared error.
    """
    side = normalize(student, dim=-1)[:, MODALITY_DIM]
    return (side - target[:, MODALITY_DIM]).square().mean()


def pairs(
    queries: Tensor, documents: Tensor, targets: tuple[Tensor, Tensor], positives: Tensor, same: Tensor
) -> Tensor:
    """Rank the batch's documents as the teacher does (KL), and the right one first (InfoNCE).

    Both sides are the student's own cut vectors, so that the first dimensions are free to hold what tells
    neighbours apart, which is not what the teacher's first principal directions hold.

    Args:
        queries: vectors of any length, shape (n, 256).
        documents: vectors of any length, shape (m, 256).
        targets: of the queries and of the documents.
        positives: each query's document, shape (n,).
        same: true where a document is no fair negative, shape (n, m).

    Returns:
        The mean over the dimensions.
    """
    wanted = softmax(targets[0] @ targets[1].T / TEMPERATURE, -1)
    total = queries.new_zeros(())
    for size in DIMENSIONS:
        scores = normalize(queries[:, :size], dim=-1) @ normalize(documents[:, :size], dim=-1).T / TEMPERATURE
        total = total + kl_div(log_softmax(scores, -1), wanted, reduction="batchmean")
        total = total + cross_entropy(scores.masked_fill(same, -torch.inf), positives)
    return total / len(DIMENSIONS)
