"""What a run ends with: what was learnt, in a sentence, and the command to try next."""

from __future__ import annotations

from training.options import FOLDER_PREFIX, NO_DISTILLATION, PACKAGED_DATA
from training.report import Summary, difference_in_points, judgement

COMPARE = "python train_example.py --compare"
OWN_IMAGES = "python train_example.py --data folder:PATH --train-images all --methods kd,icd-kd"
MORE_SEEDS = "the same command with --seeds 10 --out ANOTHER"


def last_words(summary: Summary | None) -> str:
    """Two sentences. `summary`: as `summarize`; nothing is said of none."""
    return "" if summary is None else f"{_learnt(summary)}\nNext: {_next(summary)}"


def _learnt(summary: Summary) -> str:
    settings, against = summary["settings"], summary["settings"]["baseline"]
    if not summary["top1_differences"] or settings["seeds"] == 1:
        return "Learnt: that everything works; one student of a method cannot say which method is better."
    found = (
        f"{_name(pair['method'])} {_is(judgement(pair), difference_in_points(pair))}"
        for pair in summary["top1_differences"]
    )
    return f"Learnt: against {_name(against)}, {'; '.join(found)}."


def _name(method: str) -> str:
    return "no distillation" if method == NO_DISTILLATION else method


def _is(judged: str, difference: str) -> str:
    return f"is {judged} ({difference} points)"


def _next(summary: Summary) -> str:
    settings = summary["settings"]
    if settings["seeds"] == 1:
        return f"{MORE_SEEDS}, to tell methods apart."
    if settings["data"] in PACKAGED_DATA and len(settings["methods"]) < 12:
        return f"{COMPARE}, every method of the paper's table."
    if settings["data"].startswith(FOLDER_PREFIX):
        return f"{MORE_SEEDS}, to tell methods apart that are close."
    return f"{OWN_IMAGES}, on your own images."
