"""Class form against K: error and time of the exact and the linear sums and of eager PyTorch, with their plots.

`python -m benchmarks.linear_class` takes a few minutes and writes benchmarks/results/linear_class.json,
docs/images/linear_class_*.png and the measured section of docs/linear_class_gram.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.clock import exponent
from benchmarks.machine import facts
from benchmarks.rivals import CPP, EAGER, Rival
from benchmarks.workloads import CUB_RESNET32X4_MOBILENETV2, Workload
from benchmarks.workloads import FORMS as LOSS_FORMS
from icd_kernels import gram_kl
from icd_kernels.backends import linear_reference

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/linear_class.json"
DOCUMENT = ROOT / "docs/linear_class_gram.md"
CLASSES = (200, 500, 1000, 2000, 5000, 10000, 21841)
EAGER_MOST_CLASSES = 2000
MEMORY_CLASSES = (200, 1000, 5000, 21841)
BATCH = 2
LOGIT_SIZE = 3.0
FORMS = {
    "eager": ("reference", "automatic"),
    "exact": ("cpp", "exact"),
    "linear": ("cpp", "linear"),
    "auto": ("cpp", "automatic"),
}
KINDS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "Gaussian, deviation 3": lambda student, teacher: (3 * student, 3 * teacher),
    "Gaussian, deviation 6": lambda student, teacher: (6 * student, 6 * teacher),
    "peaked": lambda student, teacher: (_raised(student), _raised(teacher)),
    "close, 1e-3 apart": lambda student, teacher: (3 * teacher + 1e-3 * student, 3 * teacher),
    "l2-normalised": lambda student, teacher: (_unit(student), _unit(teacher)),
}


def _raised(logits: Tensor) -> Tensor:
    logits = logits.clone()
    logits[:, 3] += 15
    return logits


def _unit(logits: Tensor) -> Tensor:
    return logits / logits.norm(dim=1, keepdim=True)


def small_maps(classes: int) -> Workload:
    """The ImageNet networks on four images, with that many classes."""
    return Workload(f"ResNet50→MobileNetV2, K {classes}", 4, (2048, 7, 7), (1280, 7, 7), classes)


def drawn(classes: int, cells: int, seed: int = 0, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    """Standard normal logits (B, K, cells) of both networks."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, classes, cells)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@contextmanager
def summed(form: str) -> Iterator[None]:
    os.environ["ICD_KERNELS_CLASS_SUM"] = form
    try:
        yield
    finally:
        del os.environ["ICD_KERNELS_CLASS_SUM"]


def step(student: Tensor, teacher: Tensor, scales: tuple[int, ...], backend: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    leaf = student.detach().requires_grad_()
    loss = gram_kl(leaf, teacher, scales=scales, backend=backend)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def errors(classes: int, kind: str) -> dict[str, dict[str, float]]:
    """Of every form in float32 against float64: of the loss and of the gradient's largest element, relative."""
    student, teacher = KINDS[kind](*drawn(classes, 1))
    with summed("exact"):
        exact = step(student.double(), teacher.double(), (1,), "cpp")
    found = {}
    for name, (backend, form) in FORMS.items():
        if name == "auto" or (name == "eager" and classes > EAGER_MOST_CLASSES):
            continue
        with summed(form):
            loss, gradient = step(student, teacher, (1,), backend)
        found[name] = {
            "loss": float((loss - exact[0]).abs() / exact[0].abs()),
            "gradient": float((gradient - exact[1]).abs().max() / exact[1].abs().max()),
        }
    return found


def seconds(classes: int, form: str, repeats: int, batch: int = BATCH) -> float:
    """Median time of forward and backward over the 21 regions of the default scales; the first is not counted."""
    student, teacher = (LOGIT_SIZE * part for part in drawn(classes, 21, batch=batch))
    backend, form_name = FORMS[form]
    with summed(form_name):
        return timed(lambda: step(student, teacher, (1, 2, 4), backend), repeats)


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median seconds of calls after the first."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def cub_seconds(form: str, repeats: int) -> float:
    """The whole loss, forward and backward, of the CUB-200 workload with the fewest student pixels."""
    backend, form_name = FORMS[form]
    rival = Rival(form, backend)
    with summed(form_name):
        return timed(rival.forward_backward(CUB_RESNET32X4_MOBILENETV2.inputs(), **LOSS_FORMS["class"]), repeats)


def memory_of(classes: int, threads: int) -> dict[str, Any]:
    """Extra memory of the whole loss, ours and eager's, and ours in seconds."""
    workload = small_maps(classes)
    case = Case(workload, "class")
    ours = memory.measure(case, CPP, threads)
    step_of_loss = CPP.forward_backward(workload.inputs(), **LOSS_FORMS["class"])
    return {
        "cpp": ours.extra_peak,
        "gradients": ours.gradients,
        "eager": memory.needed(case, EAGER),
        "seconds": timed(step_of_loss, 3),
    }


def measure(threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    found = {kind: {classes: errors(classes, kind) for classes in CLASSES if classes <= 5000} for kind in KINDS}
    print("worst errors", worst(found), flush=True)
    times: dict[str, dict[int, float]] = {}
    for form in ("eager", "exact", "auto"):
        for classes in CLASSES:
            if form == "eager" and classes > EAGER_MOST_CLASSES:
                continue
            repeats = 9 if form == "auto" and classes <= 5000 else 1 if classes > 1000 else 3
            times.setdefault(form, {})[classes] = seconds(classes, form, repeats)
            print(f"K {classes:6d} {form:6s} {times[form][classes] * 1e3:10.2f} ms", flush=True)
    eight = {form: seconds(1000, form, 2 if form == "eager" else 9, batch=8) for form in ("eager", "exact", "auto")}
    print("K 1000, 8 images", eight, flush=True)
    cub = {form: cub_seconds(form, 2 if form == "eager" else 15) for form in ("eager", "exact", "auto")}
    print("CUB-200", cub, flush=True)
    return {
        "machine": facts(threads),
        "batch": BATCH,
        "cells": 21,
        "logit_size": LOGIT_SIZE,
        "seconds": times,
        "exponents": {form: exponent(points) for form, points in times.items()},
        "eight_images": eight,
        "cub": cub,
        "memory": {classes: memory_of(classes, threads) for classes in MEMORY_CLASSES},
        "errors": found,
        "nodes": {
            str(error): {
                str(span): linear_reference.chebyshev_nodes(span, error)
                for span in (1, 3, 10, 25, 50, 100, 200, 400, 800)
            }
            for error in (1e-8, 1e-10, 1e-12)
        },
    }


def worst(found: dict[str, dict[int, Any]]) -> dict[str, dict[str, float]]:
    """The largest errors of each form over every kind of logits and K."""
    every = [forms for by_classes in found.values() for forms in by_classes.values()]
    return {
        form: {what: max(forms[form][what] for forms in every if form in forms) for what in ("loss", "gradient")}
        for form in ("eager", "exact", "linear")
    }


def plot_memory(result: dict[str, Any], axes: Any) -> None:
    classes = list(map(int, result["memory"]))
    for name, label in (("eager", "eager PyTorch (needed)"), ("cpp", "cpp, as shipped")):
        axes.loglog(classes, [figures[name] / 1e9 for figures in result["memory"].values()], "o-", label=label)
    axes.axhline(80, color="grey", linestyle=":", label="80 GB")
    axes.set_xlabel("classes K")
    axes.set_ylabel("GB above the tensors given")
    axes.set_title("Extra memory, 4 images")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()


def plot_cost(result: dict[str, Any], path: Path) -> None:
    labels = {"eager": "eager PyTorch", "exact": "cpp, exact sum", "auto": "cpp, as shipped (linear)"}
    figure, (axes, beside) = plt.subplots(1, 2, figsize=(11, 4.2))
    plot_memory(result, beside)
    for form, points in result["seconds"].items():
        slope = result["exponents"][form]
        axes.loglog(list(map(int, points)), list(points.values()), "o-", label=f"{labels[form]}: K^{slope:.2f}")
    axes.set_xlabel("classes K")
    axes.set_ylabel("seconds, forward + backward")
    axes.set_title(
        f"Class form, {result['batch']} images x {result['cells']} cells, {result['machine']['threads']} threads"
    )
    last = max(map(int, result["seconds"]["eager"]))
    axes.text(last * 1.15, result["seconds"]["eager"][str(last)], "eager stops", color="C0", va="center")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_errors(result: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    styles = {"eager": "s:", "exact": "^--", "linear": "o-"}
    for axes, what in zip(panels, ("loss", "gradient"), strict=True):
        for color, (kind, by_classes) in enumerate(result["errors"].items()):
            for form, style in styles.items():
                points = {int(k): forms[form][what] for k, forms in by_classes.items() if form in forms}
                label = kind if form == "linear" else None
                axes.loglog(
                    list(points), [max(v, 1e-10) for v in points.values()], style, color=f"C{color}", label=label
                )
        axes.set_xlabel("classes K")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(ticks := list(map(int, by_classes)), [f"{tick:,}" for tick in ticks])
        axes.set_title(f"{what}, float32 input")
        axes.grid(True, alpha=0.3)
    panels[0].set_ylabel("relative error against float64")
    panels[1].legend(title="solid: linear, dashed: exact, dotted: eager", fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def section(result: dict[str, Any]) -> str:
    machine, times = result["machine"], result["seconds"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {result['batch']} images x "
        f"{result['cells']} cells, Gaussian logits of standard deviation {result['logit_size']:g}, τ = 4, float32, "
        "forward + backward:",
        "",
        "| K | eager PyTorch | `cpp`, exact sum | `cpp` as shipped | exact / shipped | eager / shipped |",
        "|---|---|---|---|---|---|",
    ]
    for classes, ours in times["auto"].items():
        eager, exact = times["eager"].get(classes), times["exact"][classes]
        lines.append(
            f"| {int(classes):,} | {_ms(eager)} | {_ms(exact)} | {_ms(ours)} | {exact / ours:.1f} | "
            f"{f'{eager / ours:.0f}' if eager else ''} |"
        )
    slopes = ", ".join(f"{form} {slope:.2f}" for form, slope in result["exponents"].items())
    eight, many, most = result["eight_images"], result["memory"]["21841"], worst(result["errors"])
    cub = result["cub"]
    lines += [
        "",
        f"K = 1,000 and 8 images: eager {_ms(eight['eager'])}, exact {_ms(eight['exact'])}, shipped "
        f"{_ms(eight['auto'])}: {eight['exact'] / eight['auto']:.1f}x and {eight['eager'] / eight['auto']:.0f}x.",
        "",
        f"The whole loss of {CUB_RESNET32X4_MOBILENETV2.title} (64 images, K = 200): eager {_ms(cub['eager'])}, exact "
        f"{_ms(cub['exact'])}, shipped {_ms(cub['auto'])}: {cub['exact'] / cub['auto']:.2f}x and "
        f"{cub['eager'] / cub['auto']:.0f}x.",
        "",
        f"The whole loss at K = 21,841 (ResNet50→MobileNetV2 maps of 7 x 7, 4 images): {_ms(many['seconds'])}, "
        f"{many['cpp'] / 1e6:.0f} MB above the tensors given, {many['gradients'] / 1e6:.0f} MB of them the gradients "
        f"it returns; eager PyTorch would need {many['eager'] / 1e9:,.0f} GB.",
        "",
        "Largest relative errors over all logits plotted below, float32: "
        + "; ".join(f"{form} {of['loss']:.1e} (loss), {of['gradient']:.1e} (gradient)" for form, of in most.items())
        + ".",
        "",
        f"Fitted exponents of time in K: {slopes}. Eager stops at K = {EAGER_MOST_CLASSES:,} here; at 21,841 it needs "
        f"{memory.CLASS_TENSORS['eager'] * 4 * result['batch'] * result['cells'] * 21841**2 / 1e9:,.0f} GB.",
        "",
        "![time against K](images/linear_class_cost.png)",
        "",
        "![error against K](images/linear_class_error.png)",
        "",
        "Nodes by (1):",
        "",
        "| R | " + " | ".join(next(iter(result["nodes"].values()))) + " |",
        "|---" * (1 + len(next(iter(result["nodes"].values())))) + "|",
    ]
    lines += [
        f"| ε = {error} | " + " | ".join(map(str, spans.values())) + " |" for error, spans in result["nodes"].items()
    ]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value * 1e3:,.3g} ms" if value < 1 else f"{value:,.3g} s"


def write_section(text: str) -> None:
    begin, end = "<!-- linear-class: begin -->", "<!-- linear-class: end -->"
    before, rest = DOCUMENT.read_text().split(begin)
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--render", action="store_true", help="only redraw plots and section from the result file")
    arguments = parser.parse_args()
    if not arguments.render:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(measure(arguments.threads), indent=1))
    result = json.loads(RESULT.read_text())
    images = ROOT / "docs/images"
    images.mkdir(exist_ok=True)
    plot_cost(result, images / "linear_class_cost.png")
    plot_errors(result, images / "linear_class_error.png")
    write_section(section(result))


if __name__ == "__main__":
    main()
