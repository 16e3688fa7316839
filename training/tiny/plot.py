"""The training curve as a small picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path


def plot(curve: Path, target: Path) -> None:
    """Draw the loss of each stage over the steps.

    Args:
        curve: curve.jsonl of the work folder; after a resumed run the latest row of a step counts.
        target: the PNG to write.
    """
    rows = {(row["stage"], row["step"]): row["loss"] for row in map(json.loads, curve.read_text().splitlines())}
    before = max((step for stage, step in rows if stage != "refine"), default=0)
    figure, axes = plt.subplots(figsize=(6, 3))
    for stage, label in (("distil", "distillation"), ("pairs", "pairs"), ("refine", "refinement (more terms)")):
        offset = before if stage == "refine" else 0
        points = sorted((step + offset, loss) for (name, step), loss in rows.items() if name == stage)
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(target, dpi=90)
