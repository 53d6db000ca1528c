"""Every sweep as a log-log plot: time against size, with its fitted exponent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.results import Document
from benchmarks.tables import fitted_exponent, growth

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

AXES = {
    "classes": "classes K (B 4, maps 7 x 7)",
    "batch": "images B (CIFAR-100 maps, K 100)",
    "side": "side of both maps (256 channels, B 16, K 100)",
    "regions": "regions N (maps 28 x 28 and 14 x 14, B 16, K 200)",
}
COLOURS = {"eager": "C0", "released": "C4", "compiled": "C1", "cpp": "C2", "triton": "C2", "cuda": "C3"}


def sweep(document: Document, name: str, path: Path) -> None:
    """One sweep, a panel for each form."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2))
    for axes, form in zip(panels, ("spatial", "class"), strict=True):
        _panel(axes, growth(document, name, form))
        axes.set_xlabel(AXES[name])
        axes.set_title(f"{form} form, float32")
    panels[0].set_ylabel("seconds, forward + backward")
    machine = document["machine"]
    figure.suptitle(machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Any, lines: dict[str, dict[int, float]]) -> None:
    ticks: set[int] = set()
    for rival, points in lines.items():
        slope = fitted_exponent(points)
        label = rival if slope is None else f"{rival}: exponent {slope:.2f}"
        axes.loglog(list(points), list(points.values()), "o-", label=label, color=COLOURS.get(rival, "C5"), ms=4)
        ticks |= set(points)
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
