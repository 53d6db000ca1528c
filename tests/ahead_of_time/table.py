"""Registers, shared memory and spills of every kernel in every documented configuration, for every target.

    python tests/ahead_of_time/table.py [--targets sm_90 ..] [--quick]

Compiles ahead of time; no GPU is needed. Each line is one compiled kernel of a launch that a real call would make.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from compiling import TARGETS, Launch, compiled, launches_of, usage

from icd_kernels.backends.triton import backward, gram_kl, icd_loss, region_logits

SCALES = (1, 2, 4)
WEIGHTS = (1 / 6, 2 / 6, 3 / 6)


@dataclass(frozen=True)
class Workload:
    """Shapes of one row of the benchmarks: B, K, and each network's C, H = W."""

    batch: int
    classes: int
    teacher: tuple[int, int]
    student: tuple[int, int]


CUB = Workload(64, 200, (256, 28), (1280, 7))
WORKLOADS = {
    "CIFAR-100": Workload(64, 100, (256, 8), (1280, 2)),
    "CUB-200": CUB,
    "CUB-200 VGG": Workload(64, 200, (512, 28), (512, 28)),
    "ImageNet": Workload(256, 1000, (2048, 7), (1280, 7)),
}
FORMS = {
    "paper class": ("class", "adaptive", "none"),
    "released spatial": ("spatial", "nested", "l2"),
    "class zscore": ("class", "nested", "zscore"),
    "spatial zscore": ("spatial", "adaptive", "zscore"),
    "sample l2": ("sample", "adaptive", "l2"),
}
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float64": (torch.float64, "highest"),
}


@dataclass(frozen=True)
class Configuration:
    """One call whose launches are compiled."""

    workload: str
    form: str
    precision: str
    layout: torch.memory_format = torch.contiguous_format
    reduction: str = "mean"

    def launches(self, target: str) -> list[Launch]:
        """Forward and backward of every operator, on a machine with `target`."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(PRECISIONS[self.precision][1])
        try:
            return launches_of(self._call, target)
        finally:
            torch.set_float32_matmul_precision(before)

    def _call(self) -> None:
        work, dtype = WORKLOADS[self.workload], PRECISIONS[self.precision][0]
        gram, pyramid, normalize = FORMS[self.form]
        student, student_head = self._network(work, work.student, dtype)
        teacher, teacher_head = self._network(work, work.teacher, dtype)
        bias = student_head.new_empty(work.classes)
        rest: Any = (gram, pyramid, normalize, 4.0, self.reduction)
        options: Any = (SCALES, WEIGHTS, *rest)
        layout: Any = (student.shape, student.stride(), dtype, dtype)
        every: Any = (True, True, True)

        loss: Any = icd_loss.icd_loss
        loss_backward: Any = backward.icd_loss_backward
        regions: Any = region_logits.region_logits
        regions_backward: Any = backward.region_logits_backward
        kl: Any = gram_kl.gram_kl

        loss(student, student_head, bias, teacher, teacher_head, bias, *options, False, False)
        result = loss(student, student_head, bias, teacher, teacher_head, bias, *options, True, True)
        loss_backward(result[0], *result[1:], student_head, *layout, *options, every)
        logits, pooled = regions(student, student_head, bias, SCALES, pyramid, True)
        regions_backward(logits, pooled, student_head, *layout, SCALES, pyramid, every)
        without: Any = (SCALES, WEIGHTS, gram, *rest[2:])
        value, saved = kl(logits, logits, *without, True)
        gram_kl.gram_kl_backward(value, saved, dtype, *without)

    def _network(self, work: Workload, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Any, Any]:
        channels, side = shape
        size = (work.batch, channels, side, side)
        features = torch.empty(size, dtype=dtype, device="meta", memory_format=self.layout)
        return features, torch.empty(work.classes, channels, dtype=dtype, device="meta")


def configurations() -> Iterator[Configuration]:
    """Every documented configuration."""
    for workload in WORKLOADS:
        for form in FORMS:
            for precision in PRECISIONS:
                yield Configuration(workload, form, precision)
    yield Configuration("CUB-200", "released spatial", "bfloat16", torch.channels_last)
    yield Configuration("CUB-200", "paper class", "float32", torch.channels_last)
    yield Configuration("CUB-200", "sample l2", "float32", reduction="none")


def quick_configurations() -> list[Configuration]:
    """A few that hold every kernel and every Gram once."""
    return [
        Configuration("CUB-200", "paper class", "float32"),
        Configuration("ImageNet", "paper class", "float32"),
        Configuration("CUB-200", "released spatial", "bfloat16"),
        Configuration("CUB-200", "sample l2", "tf32", reduction="none"),
    ]


HEADER = "workload     form              precision kernel                 target   regs  shared  stack spills"


def table(
    chosen: list[Configuration], targets: list[str], show: Callable[[str], None] = print
) -> list[tuple[Configuration, str, str, Any]]:
    """Compiles and shows a line each; a launch that several configurations share is compiled once."""
    show(HEADER)
    seen, rows = set(), []
    for configuration in chosen:
        for target in targets:
            for launch in configuration.launches(target):
                kernel = compiled(launch, TARGETS[target])
                if (kernel.hash, target) in seen:
                    continue
                seen.add((kernel.hash, target))
                use = usage(kernel)
                rows.append((configuration, launch.name, target, use))
                show(
                    f"{configuration.workload:12} {configuration.form:17} {configuration.precision:9} "
                    f"{launch.name:22} {target:7} {use.registers:5} {use.shared:7} {use.stack:6} {use.spills:6}"
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="only the configurations of the default test run")
    arguments = parser.parse_args()
    table(quick_configurations() if arguments.quick else list(configurations()), arguments.targets)


if __name__ == "__main__":
    main()
