"""The figure of top-1 and the losses over the epochs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from training.averages import standard_error
from training.colours import colours
from training.figure_file import write_figure
from training.state import State

PANELS = (
    ("top1", "top-1 on test images (%)"),
    ("ce", "cross-entropy (nats)"),
    ("kd", "KD: T²·KL (nats)"),
    ("icd", "iCD (nats)"),
)


def write_curves(path: Path, state: State, teacher_top1: float) -> None:
    """Means over the seeds, ± standard error; the test images' losses and, dashed, the training losses."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    of_method = colours(state.settings["methods"])
    for axes, (quantity, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for method, colour in of_method.items():
            _draw_test(axes, state, method, f"test_{quantity}", colour)
            _draw_training(axes, state, method, f"train_{quantity}", colour)
        if quantity == "top1":
            axes.axhline(teacher_top1, color="black", linestyle=":", label=f"teacher ({teacher_top1:.1f} %)")
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.plot([], [], color="black", linewidth=1, linestyle="--", label="on training images")
        axes.set(title=title, xlabel="epoch", xlim=(1, max(2, state.settings["epochs"])))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8 if len(of_method) < 6 else 6, ncols=1 if len(of_method) < 6 else 2)
    seeds = state.settings["seeds"]
    figure.suptitle(
        f"{state.settings['data']}, {state.settings['train_images']} labelled images: "
        + (f"mean of {seeds} seeds, band ± standard error" if seeds > 1 else "one seed")
    )
    write_figure(figure, path)


def _draw_test(axes: Axes, state: State, method: str, name: str, colour: str) -> None:
    """Where the networks have this quantity."""
    epochs, values = _by_epoch(state, method, name)
    if not values[0]:
        return
    means = [mean(seeds) for seeds in values]
    errors = [standard_error(seeds) or 0.0 for seeds in values]
    axes.plot(epochs, means, color=colour, marker="." if len(epochs) < 10 else "", label=method)
    low = [value - error for value, error in zip(means, errors, strict=True)]
    high = [value + error for value, error in zip(means, errors, strict=True)]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)


def _draw_training(axes: Axes, state: State, method: str, name: str, colour: str) -> None:
    """Where the method is trained on this quantity."""
    epochs, values = _by_epoch(state, method, name)
    if values[0]:
        axes.plot(epochs, [mean(seeds) for seeds in values], color=colour, linewidth=1, linestyle="--")


def _by_epoch(state: State, method: str, name: str) -> tuple[list[int], list[list[float]]]:
    """Epochs from 1, and each epoch's values over the seeds; none of what the method does not have."""
    epochs = list(range(1, state.settings["epochs"] + 1))
    rows = [row for row in state.rows if row["method"] == method]
    return epochs, [[row[name] for row in rows if row["epoch"] == epoch and name in row] for epoch in epochs]
