"""Class form's options chosen by experiment: runs them on real images and writes docs/defaults.md.

`python -m tools.ablate_defaults` trains 510 students on five seeds, then 240 on ten others for what looked best, in
about 40 minutes on two cores; a second call goes on where the first stopped. `--render` only writes the page and its
plot again, `--growth` only its table of gradients against K.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import matplotlib as mpl
import torch

from icd_kernels import gram_kl
from training.averages import difference, standard_error

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/ablation"
RESULT = ROOT / "docs/defaults.json"
DOCUMENT = ROOT / "docs/defaults.md"
PLOT = ROOT / "docs/images/defaults.png"

DATA = ("mnist5k", "digits")
PAIRS = (("small", "small"), ("small", "narrow"), ("deep", "small"))
EPOCHS = 20
SEEDS, FRESH_SEEDS = range(5), range(5, 15)
BASELINE = "sd-kd"
LEFT_EDGE = -3.5
"""Of the plot, in points."""
CLASSES = (10, 100, 200, 1000)


class Setting(NamedTuple):
    """iCD's options beside SD-KD."""

    form: str
    normalize: str
    temperature: float
    weight: float

    @property
    def name(self) -> str:
        return f"{self.form}, {self.normalize}, τ {self.temperature:g}, weight {self.weight:g}"

    @property
    def options(self) -> list[str]:
        preset = "paper" if self.form == "class" else "corrected"
        return [
            *("--methods", "icd-kd", "--preset", preset, "--local-base", "--normalize", self.normalize),
            *("--temperature", f"{self.temperature:g}", "--icd-weight", f"{self.weight:g}"),
        ]


SETTINGS = (
    *(Setting("class", "none", 4.0, weight) for weight in (0.003, 0.03, 0.3)),
    *(Setting("class", "zscore", 4.0, weight) for weight in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)),
    *(Setting("class", "l2", 0.1, weight) for weight in (0.1, 0.3, 1.0, 3.0)),
    Setting("spatial", "l2", 2.0, 2.0),
)
AGAIN = ("class, zscore, τ 4, weight 3", "class, none, τ 4, weight 0.03")
"""Looked at once more: the setting with the highest mean of all, and the one that train_example.py had before."""


class Cell(NamedTuple):
    """A data set and a pair of networks."""

    data: str
    teacher: str
    student: str

    @property
    def name(self) -> str:
        return f"{self.data}, {self.teacher}→{self.student}"


CELLS = tuple(Cell(data, *pair) for data in DATA for pair in PAIRS)


def run(cell: Cell, name: str, options: list[str], seeds: range) -> dict[str, Any]:
    """A run of the example, or what is left of it: its summary."""
    words = (*cell, *name.split(", "), *(() if seeds == SEEDS else ("fresh",)))
    folder = RUNS / "-".join(words).replace(" ", "")
    command = [
        *(sys.executable, "train_example.py", "--data", cell.data, "--teacher", cell.teacher),
        *("--student", cell.student, "--seed", str(seeds.start), "--seeds", str(len(seeds)), "--epochs", str(EPOCHS)),
        *("--out", str(folder), "--resume", "--cache", str(RUNS / "teachers"), "--threads", "1", *options),
    ]
    if not (folder / "summary.json").exists():
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(f"{cell.name}: {name}", flush=True)
    return json.loads((folder / "summary.json").read_text())


def measure(processes: int) -> dict[str, Any]:
    """Top-1 of every seed, by cell and setting; and of the fresh seeds."""
    with ThreadPoolExecutor(processes) as pool:
        first, versions = _measure(pool, SETTINGS, "none,kd,sd-kd", SEEDS)
        again = tuple(setting for setting in SETTINGS if setting.name in AGAIN)
        fresh, _ = _measure(pool, again, "kd,sd-kd", FRESH_SEEDS)
    return {"top1": first, "fresh_top1": fresh, "versions": versions}


def _measure(
    pool: ThreadPoolExecutor, settings: tuple[Setting, ...], plain_methods: str, seeds: range
) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = list(pool.map(lambda cell: run(cell, "plain", ["--methods", plain_methods], seeds), CELLS))
    jobs = [(cell, setting) for cell in CELLS for setting in settings]
    summaries = pool.map(lambda job: run(job[0], job[1].name, job[1].options, seeds), jobs)
    found: dict[str, Any] = {}
    for cell, summary in zip(CELLS, plain, strict=True):
        methods = {method: numbers["top1"] for method, numbers in summary["methods"].items()}
        found[cell.name] = {"teacher": summary["teacher_top1"], **methods}
    for (cell, setting), summary in zip(jobs, summaries, strict=True):
        found[cell.name][setting.name] = summary["methods"]["icd-kd"]["top1"]
    return found, {**plain[0]["versions"], "train_images": plain[0]["settings"]["train_images"]}


def growth() -> dict[str, dict[int, float]]:
    """Norm of iCD's gradient by the local logits, class form, as a multiple of KD's, against K.

    Student and teacher logits are normal of deviation 3, correlated by 0.8: a student in the middle of its training.
    """
    found: dict[str, dict[int, float]] = {}
    for normalize, temperature in (("none", 4.0), ("zscore", 4.0), ("l2", 0.1)):
        for classes in CLASSES:
            generator = torch.Generator().manual_seed(0)
            teacher = 3 * torch.randn(8, classes, 21, generator=generator, dtype=torch.float64)
            noise = 3 * torch.randn(8, classes, 21, generator=generator, dtype=torch.float64)
            student = (0.8 * teacher + 0.6 * noise).requires_grad_()
            loss = gram_kl(student, teacher, normalize=normalize, temperature=temperature)
            (gradient,) = torch.autograd.grad(loss, student)
            log_q, log_p = (torch.log_softmax(logits / 4, 1) for logits in (student, teacher))
            kd = 16 * (log_p.exp() * (log_p - log_q)).sum(1).mean()
            (kd_gradient,) = torch.autograd.grad(kd, student)
            found.setdefault(f"{normalize}, τ {temperature:g}", {})[classes] = float(
                gradient.norm() / kd_gradient.norm()
            )
    return found


def gains(top1: dict[str, Any], setting: str, data: str = "") -> list[float]:
    """Points that a setting adds to SD-KD, seed by seed over the cells of a data set or of all."""
    cells = [numbers for name, numbers in top1.items() if name.startswith(data)]
    return [value - plain for cell in cells for value, plain in zip(cell[setting], cell[BASELINE], strict=True)]


def table(top1: dict[str, Any], settings: tuple[str, ...]) -> Iterator[str]:
    yield f"| setting | all | {' | '.join(DATA)} | clear |"
    yield "|---|---|---|---|---|"
    for setting in settings:
        every = gains(top1, setting)
        by_data = (gains(top1, setting, data) for data in DATA)
        clear = difference(every, [0.0] * len(every)).clear
        cells = " | ".join(f"{mean(values):+.2f} ± {standard_error(values):.2f}" for values in (every, *by_data))
        yield f"| {setting} | {cells} | {'yes' if clear else 'no'} |"


def page(result: dict[str, Any]) -> str:
    """The measured section."""
    versions = result["versions"]
    lines = [
        f"Top-1 beyond SD-KD in points, mean ± standard error of {len(CELLS) * len(SEEDS)} paired differences "
        f"({len(DATA)} data sets, {len(PAIRS)} pairs of networks, {len(SEEDS)} seeds), {versions['train_images']} "
        f"labelled images, {EPOCHS} epochs; torch {versions['torch']}. Clear: the 95 % interval of the mean leaves out "
        f"0, no allowance being made for there being {len(SETTINGS)} settings.",
        "",
        *table(result["top1"], (*(setting.name for setting in SETTINGS), "kd", "none")),
        "",
        "![what each setting adds](images/defaults.png)",
        "",
        f"The highest of these and the setting that the example had before, again on {len(FRESH_SEEDS)} seeds that "
        f"had no part in the choice, {len(CELLS) * len(FRESH_SEEDS)} differences each:",
        "",
        *table(result["fresh_top1"], (*AGAIN, "kd")),
        "",
        "What they are beyond, on the first seeds:",
        "",
        "| data, teacher→student | teacher | none | kd | sd-kd |",
        "|---|---|---|---|---|",
    ]
    for name, numbers in result["top1"].items():
        cells = " | ".join(
            f"{mean(numbers[m]):.2f} ± {standard_error(numbers[m]):.2f}" for m in ("none", "kd", BASELINE)
        )
        lines.append(f"| {name} | {numbers['teacher']:.2f} | {cells} |")
    return "\n".join(lines)


def growth_page() -> str:
    """The section on gradients."""
    lines = [
        "Norm of iCD's gradient (class form, weight 1) as a multiple of KD's (T = 4), by the local logits:",
        "",
        f"| normalize | {' | '.join(f'K {classes:,}' for classes in CLASSES)} |",
        "|---" * (1 + len(CLASSES)) + "|",
    ]
    for name, points in growth().items():
        lines.append(f"| {name} | {' | '.join(f'{value:.3g}' for value in points.values())} |")
    return "\n".join(lines)


def insert(name: str, text: str) -> None:
    """Replaces what stands between the page's two markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def plot(result: dict[str, Any]) -> None:
    """Gains by setting; those beyond the left edge are written there as numbers."""
    names = [setting.name for setting in SETTINGS]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(names) + 1.4), layout="constrained")
    for shift, data in zip((-0.2, 0.0, 0.2), ("", *DATA), strict=True):
        values = [gains(result["top1"], name, data) for name in names]
        points = [(place + shift, mean(each), standard_error(each) or 0.0) for place, each in enumerate(values)]
        inside = [point for point in points if point[1] >= LEFT_EDGE]
        places, means, errors = zip(*inside, strict=True)
        bars = axes.errorbar(
            means, places, xerr=errors, fmt="o" if not data else ".", capsize=2, label=data or "both"
        )  # fmt: skip
        for place, value, _ in set(points) - set(inside):
            axes.annotate(f"← {value:.1f}", (LEFT_EDGE, place), va="center", fontsize=7, color=bars[0].get_color())
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(left=LEFT_EDGE)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 beyond SD-KD, points: mean ± standard error of paired differences")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="runs side by side (default: 2)")
    parser.add_argument("--render", action="store_true", help="only write page and plot from docs/defaults.json")
    parser.add_argument("--growth", action="store_true", help="only write the table of gradients against K")
    arguments = parser.parse_args()
    if not arguments.render:
        insert("growth", growth_page())
    if arguments.growth:
        return
    if not arguments.render:
        RESULT.write_text(json.dumps(measure(arguments.processes), indent=1, ensure_ascii=False) + "\n")
    result = json.loads(RESULT.read_text())
    plot(result)
    insert("ablation", page(result))


if __name__ == "__main__":
    main()
