"""The figures of a run, where matplotlib is there to draw them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from icd_kernels import ICDLoss
from training.data import DataSet
from training.report import Summary
from training.state import State

COMPARISON, CURVES, GRAMS = "compare.png", "curves.png", "grams.png"


def notes() -> list[str]:
    """What is said of figures before a run."""
    if find_spec("matplotlib") is None:
        return ["no figures: matplotlib is not installed (python -m pip install matplotlib, and --resume draws them)"]
    return []


def write_figures(state: State, summary: Summary, images: DataSet, probes: Any, icd: ICDLoss) -> list[str]:
    """Writes those that can be made.

    Args:
        state: of the finished run; Gram matrices are drawn where its networks have maps.
        summary: as `summarize`.
        images: the data.
        probes: function from the data to the test images of the Gram figure, and their labels.
        icd: whose Gram matrices these are.

    Returns:
        The names of the files.
    """
    if find_spec("matplotlib") is None:
        return []
    from training.comparison import write_comparison
    from training.curves import write_curves
    from training.grams import write_grams

    write_comparison(state.folder / COMPARISON, summary)
    write_curves(state.folder / CURVES, state, summary["teacher_top1"])
    if "teacher" not in state.probes:
        return [COMPARISON, CURVES]
    shown, labels = probes(images)
    write_grams(state.folder / GRAMS, state.probes, shown.cpu(), labels.cpu(), icd)
    return [COMPARISON, CURVES, GRAMS]
