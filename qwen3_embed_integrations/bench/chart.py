"""The bar chart of a benchmark."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qwen3_embed_integrations.bench.measure import INSTALL, is_ours

if TYPE_CHECKING:
    from pathlib import Path

    from qwen3_embed_integrations.bench.measure import Report

_OURS, _THEIRS = "#1b6ca8", "#b8bec5"


def require_matplotlib() -> None:
    """Check that charts can be drawn, before an hour of measuring.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(f"the chart needs matplotlib: {INSTALL}") from error


def format_seconds(seconds: float) -> str:
    """Write a time in seconds, or in milliseconds where it is short."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def draw(report: Report, path: Path) -> None:
    """Draw a group of bars a case, one bar an engine at its best batch size, and write it as a PNG.

    Args:
        report: what was measured.
        path: where to write.
    """
    from matplotlib.figure import Figure

    # A Figure without pyplot draws with Agg and leaves the caller's backend alone.
    bars = sum(len(report.best(case)) for case in report.cases)
    figure = Figure(figsize=(10, 1 + 0.21 * bars + 0.45 * len(report.cases)), dpi=120, layout="constrained")
    heights = [len(report.best(case)) + 1 for case in report.cases]
    panels = figure.subplots(len(report.cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, case in zip(panels, report.cases, strict=True):
        best = report.best(case)
        names = [item.engine if item.batch_size is None else f"{item.engine}, batch {item.batch_size}" for item in best]
        slowest = max(item.seconds for item in best)
        colors = [_OURS if is_ours(item.engine) else _THEIRS for item in best]
        drawn = panel.barh(names, [item.seconds for item in best], color=colors)
        labels = [f"{format_seconds(item.seconds)}  ({slowest / item.seconds:.1f}x)" for item in best]
        panel.bar_label(drawn, labels, padding=4, fontsize=9)
        panel.set_title(case, loc="left", fontsize=10, fontweight="bold")
        panel.set_xlim(0, 1.25 * slowest)
        panel.invert_yaxis()
        panel.tick_params(axis="y", length=0, labelsize=9)
        panel.xaxis.set_visible(False)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(
        f"Qwen3-Embedding {report.shape}: time, shorter is better (times as fast as the slowest)\n"
        f"{report.machine['processor']}, {report.machine['threads']} threads",
        fontsize=11,
    )
    figure.savefig(path, format="png")
