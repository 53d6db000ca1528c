"""What a run found: the summary, the table and one sentence."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import torch

import icd_kernels
from training.averages import difference, standard_error
from training.state import Row, State

TERMS = ("ce", "kd", "icd")
PAIRS = (("kd", "none"), ("icd-kd", "none"), ("icd-kd", "kd"))


def summarize(state: State, teacher_top1: float) -> dict[str, Any]:
    """The numbers of the table by method, over the seeds, from each student's last epoch."""
    methods = {method: _method_summary(method, state) for method in state.settings["methods"]}
    differences = [
        {"method": method, "against": other, **difference(methods[method]["top1"], methods[other]["top1"])._asdict()}
        for method, other in PAIRS
        if method in methods and other in methods
    ]
    return {
        "teacher_top1": teacher_top1,
        "methods": methods,
        "top1_differences": differences,
        "conclusion": _conclusion(state.settings, methods, differences),
        "settings": state.settings,
        "versions": {"icd_kernels": icd_kernels.__version__, "torch": torch.__version__},
    }


def table(summary: dict[str, Any]) -> str:
    """The results as text, 82 columns wide."""
    lines = [
        "                top-1, %    seconds   losses, last epoch      losses, test images",
        "method      mean ± s. e.   per step     ce      kd     icd      ce      kd     icd",
        f"{'teacher':8}  {summary['teacher_top1']:6.2f}",
    ]
    for method, numbers in summary["methods"].items():
        terms = [numbers[f"{part}_{term}"] for part in ("train", "test") for term in TERMS]
        losses = "".join(f"{'-' if term is None else _short(term):>8}" for term in terms)
        lines.append(f"{method:8}  {_top1(numbers):14} {numbers['seconds_per_step']:9.4f}{losses}")
    seeds = summary["settings"]["seeds"]
    lines.append(f"Means over {seeds} seed{'s' if seeds > 1 else ''}. Losses before their weights; -: not trained on.")
    return "\n".join(lines)


def _method_summary(method: str, state: State) -> dict[str, Any]:
    rows = [row for row in state.rows if row["method"] == method]
    last = [row for row in rows if row["epoch"] == state.settings["epochs"]]
    top1 = [row["test_top1"] for row in last]
    return {
        "top1": top1,
        "top1_mean": mean(top1),
        "top1_standard_error": standard_error(top1),
        "seconds_per_step": median(row["seconds_per_step"] for row in rows),
        **{f"{part}_{term}": _mean_term(last, f"{part}_{term}") for part in ("train", "test") for term in TERMS},
    }


def _mean_term(rows: list[Row], name: str) -> float | None:
    return None if rows[0][name] is None else mean(row[name] for row in rows)


def _conclusion(settings: dict[str, Any], methods: dict[str, Any], differences: list[dict[str, Any]]) -> str:
    """What the top-1 numbers say, in one sentence."""
    seeds = settings["seeds"]
    start = f"With {settings['train_images']} labelled images and {seeds} seed{'s' if seeds > 1 else ''}"
    if seeds == 1 or not differences:
        reached = ", ".join(f"{method} {_top1(numbers).strip()} %" for method, numbers in methods.items())
        caution = "; one seed cannot say which method is better" if seeds == 1 and differences else ""
        return f"{start}, top-1 is {reached}{caution}."
    said = [_difference_said(pair) for pair in differences]
    listed = said[0] if len(said) == 1 else f"{', '.join(said[:-1])}, and {said[-1]}"
    return (
        f"{start}, {listed} (points of top-1: mean ± standard error of the differences seed by seed, judged at 95 %)."
    )


def _difference_said(pair: dict[str, Any]) -> str:
    points = f"{pair['mean']:+.2f} ± {pair['standard_error']:.2f}"
    if not pair["clear"]:
        return f"{pair['method']} and {pair['against']} cannot be told apart ({points})"
    return f"{pair['method']} is {'better' if pair['mean'] > 0 else 'worse'} than {pair['against']} ({points})"


def _top1(numbers: dict[str, Any]) -> str:
    error = numbers["top1_standard_error"]
    return f"{numbers['top1_mean']:6.2f}" + ("" if error is None else f" ± {error:.2f}")


def _short(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.1f}"
