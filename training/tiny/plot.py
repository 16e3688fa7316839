"""The training curve as a small picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path


def plot(curve: Path, target: Path) -> None:
    """Draw the loss of both stages over the steps.

    Args:
        curve: curve.jsonl of the work folder; after a resumed run the latest row of a step counts.
        target: the PNG to write.
    """
    rows = {row["step"]: row for row in map(json.loads, curve.read_text().splitlines())}
    figure, axes = plt.subplots(figsize=(6, 3))
    for stage, label in (("distil", "distillation"), ("pairs", "distillation and contrast on pairs")):
        points = sorted((step, row["loss"]) for step, row in rows.items() if row["stage"] == stage)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, dpi=90)
