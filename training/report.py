"""What a run found: the summary, the tables and what they say of the differences."""

from __future__ import annotations

from statistics import mean, median
from typing import Any

import torch

import icd_kernels
from training.averages import difference, standard_error
from training.state import Row, State

COLUMNS = ("train_ce", "train_base", "train_icd", "test_ce", "test_kd", "test_icd")
OTHER_TERMS = ("train_loss", "train_ce", "train_icd")
"""Of a row's training terms those that are not the method's base."""

Summary = dict[str, Any]


def summarize(state: State, teacher_top1: float) -> Summary:
    """The numbers of the tables by method, over the seeds, from each student's last epoch."""
    methods = {method: _method_summary(method, state) for method in state.settings["methods"]}
    baseline = state.settings["baseline"]
    differences = [
        {
            "method": method,
            "against": baseline,
            **difference(numbers["top1"], methods[baseline]["top1"])._asdict(),
        }
        for method, numbers in methods.items()
        if method != baseline
    ]
    return {
        "teacher_top1": teacher_top1,
        "methods": methods,
        "top1_differences": differences,
        "conclusion": _conclusion(state.settings, methods, differences),
        "settings": state.settings,
        "versions": {"icd_kernels": icd_kernels.__version__, "torch": torch.__version__},
    }


def table(summary: Summary) -> str:
    """The results as text, 82 columns wide."""
    lines = [
        "                top-1, %    seconds   losses, last epoch      losses, test images",
        "method      mean ± s. e.   per step     ce    base     icd      ce      kd     icd",
        f"{'teacher':8}  {summary['teacher_top1']:6.2f}",
    ]
    for method, numbers in summary["methods"].items():
        losses = "".join(f"{'-' if numbers[name] is None else _short(numbers[name]):>8}" for name in COLUMNS)
        lines.append(f"{method:8}  {_top1(numbers):14} {numbers['seconds_per_step']:9.4f}{losses}")
    lines.append(
        f"Means over {_seeds(summary['settings'])}. Losses before their weights; -: none. base: the method's "
        "own term,\non local logits for sd-*, and for icd-* with --local-base."
    )
    return "\n".join(lines)


def markdown_table(summary: Summary) -> str:
    """The top-1 of every method and its difference from the baseline, as Markdown."""
    baseline = summary["settings"]["baseline"]
    differences = {pair["method"]: pair for pair in summary["top1_differences"]}
    lines = [
        f"| method | top-1 (%), mean ± s. e. | less {baseline}, points | at 95 % |",
        "|---|---|---|---|",
        f"| teacher | {summary['teacher_top1']:.2f} | | |",
    ]
    for method, numbers in summary["methods"].items():
        cells = ["", ""]
        if method in differences:
            cells = [difference_in_points(differences[method]), judgement(differences[method])]
        lines.append(f"| {' | '.join([method, _top1(numbers).strip(), *cells])} |")
    return "\n".join(lines)


def _method_summary(method: str, state: State) -> dict[str, Any]:
    rows = [row for row in state.rows if row["method"] == method]
    last = [row for row in rows if row["epoch"] == state.settings["epochs"]]
    top1 = [row["test_top1"] for row in last]
    base = next((name for name in last[0] if name.startswith("train_") and name not in OTHER_TERMS), None)
    names = dict(zip(COLUMNS, COLUMNS, strict=True)) | {"train_base": base}
    return {
        "top1": top1,
        "top1_mean": mean(top1),
        "top1_standard_error": standard_error(top1),
        "seconds_per_step": median(row["seconds_per_step"] for row in rows),
        "base": None if base is None else base.removeprefix("train_"),
        **{column: _mean_term(last, name) for column, name in names.items()},
    }


def _mean_term(rows: list[Row], name: str | None) -> float | None:
    return None if name not in rows[0] else mean(row[name] for row in rows)


def _conclusion(settings: dict[str, Any], methods: dict[str, Any], differences: list[dict[str, Any]]) -> str:
    """What the top-1 numbers say, in a sentence or two."""
    start = f"With {settings['train_images']} labelled images and {_seeds(settings)}"
    if settings["seeds"] == 1 or not differences:
        reached = ", ".join(f"{method} {_top1(numbers).strip()} %" for method, numbers in methods.items())
        caution = "; one seed cannot say which method is better" if settings["seeds"] == 1 and differences else ""
        return f"{start}, top-1 is {reached}{caution}."
    said = []
    for judged in ("better", "worse", "not told apart"):
        pairs = [pair for pair in differences if judgement(pair) == judged]
        named = [f"{pair['method']} ({difference_in_points(pair)})" for pair in pairs]
        if named:
            said.append(f"{judged}: {', '.join(named)}")
    conclusion = (
        f"{start}, against {settings['baseline']}, {'; '.join(said)} (points of top-1: mean ± standard error of the "
        "differences seed by seed, judged at 95 %)."
    )
    if len(differences) > 2:
        conclusion += (
            f" Each is judged by itself: of {len(differences)} methods equal to {settings['baseline']}, "
            f"{0.05 * len(differences):.2g} would be called better or worse on average."
        )
    return conclusion


def judgement(pair: dict[str, Any]) -> str:
    """Of a method's difference from the baseline: "better", "worse" or "not told apart"."""
    if not pair["clear"]:
        return "not told apart"
    return "better" if pair["mean"] > 0 else "worse"


def difference_in_points(pair: dict[str, Any]) -> str:
    """The difference, ± its standard error."""
    error = pair["standard_error"]
    return f"{pair['mean']:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def _top1(numbers: dict[str, Any]) -> str:
    error = numbers["top1_standard_error"]
    return f"{numbers['top1_mean']:6.2f}" + ("" if error is None else f" ± {error:.2f}")


def _seeds(settings: dict[str, Any]) -> str:
    return f"{settings['seeds']} seed{'s' if settings['seeds'] > 1 else ''}"


def _short(value: float) -> str:
    return f"{value:.4f}" if value < 10 else f"{value:.1f}"
