"""The figure of the methods' top-1 beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.colours import colours
from training.figure_file import write_figure


def write_comparison(path: Path, summary: dict[str, Any]) -> None:
    """A point for each method in the order they were given, ± standard error, and its single seeds in grey."""
    methods = summary["methods"]
    places = range(len(methods))
    figure = Figure(figsize=(8, 0.34 * len(methods) + 1.6), layout="constrained")
    axes = figure.subplots()
    of_method = colours(tuple(methods))
    for place, (method, numbers) in zip(places, methods.items(), strict=True):
        axes.plot(numbers["top1"], [place] * len(numbers["top1"]), ".", color="#b0b0b0", zorder=1)
        error = numbers["top1_standard_error"]
        axes.errorbar(numbers["top1_mean"], place, xerr=error, fmt="o", capsize=3, color=of_method[method], zorder=2)
    settings = summary["settings"]
    baseline = settings["baseline"]
    axes.axvline(methods[baseline]["top1_mean"], color="black", linewidth=1, linestyle="--", label=baseline)
    axes.set_yticks(places, list(methods))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    seeds = settings["seeds"]
    axes.set_xlabel("top-1 on test images (%)" + (": mean ± standard error; grey: each seed" if seeds > 1 else ""))
    axes.set_title(
        f"{settings['data']}, {settings['train_images']} labelled images, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"teacher {summary['teacher_top1']:.1f} %",
        fontsize=10,
    )
    write_figure(figure, path)
