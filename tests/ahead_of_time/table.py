"""What every kernel is in every documented configuration, for every target, read from the compiled code.

    python tests/ahead_of_time/table.py [--targets sm_90 ..] [--quick]

Compiles ahead of time; no GPU is needed. Each line is one compiled kernel of a launch that a real call would make:
registers, bytes of shared memory, spilled registers, machine instructions; waits for other programs, and those that
read before they acquired the order; bytes of the narrowest load and asynchronous copy per thread; operands of pipelined
products with bank conflicts; instructions of each innermost loop with tensor-core products or exponentials; seconds of
processor time to compile it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from binary import Binary, read
from compiling import TARGETS, Launch, amd_spills, identity_of, launches_of, timed

from icd_kernels.backends.triton import backward, gram_kl, icd_loss, region_features, region_logits
from icd_kernels.options import Options
from icd_kernels.problem import lower

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
        named = Options(SCALES, WEIGHTS, gram, pyramid, normalize, 4.0, self.reduction)
        problem = lower(named, work.classes, student.shape, teacher.shape)
        options: Any = problem.options
        finest = problem.student_finest
        layout: Any = (student.shape, student.stride(), dtype, dtype)
        every: Any = (True, True, True)

        loss: Any = icd_loss.icd_loss
        loss_backward: Any = backward.icd_loss_backward
        regions: Any = region_logits.region_logits
        regions_backward: Any = backward.region_logits_backward
        kl: Any = gram_kl.gram_kl
        pooled_cells: Any = region_features.region_features
        scattered: Any = region_features.region_features_backward

        loss(student, student_head, bias, teacher, teacher_head, bias, *options, *problem[1:], False, False)
        result = loss(student, student_head, bias, teacher, teacher_head, bias, *options, *problem[1:], True, True)
        loss_backward(result[0], *result[1:], student_head, *layout, *options, finest, every)
        logits, pooled = regions(student, student_head, bias, SCALES, finest, True)
        regions_backward(logits, pooled, student_head, *layout, SCALES, finest, every)
        value, saved = kl(logits, logits, *options, True)
        gram_kl.gram_kl_backward(value, saved, dtype, *options)
        scattered(pooled_cells(student, SCALES), *layout[:3], SCALES)

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
        Configuration("CUB-200", "released spatial", "float32"),
        Configuration("CUB-200", "released spatial", "bfloat16"),
        Configuration("CUB-200", "sample l2", "tf32", reduction="none"),
    ]


@dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    configuration: Configuration
    kernel: str
    target: str
    binary: Binary | None
    """None for AMD's GPUs, whose code is not read."""
    spills: int
    shared: int
    seconds: float

    def __str__(self) -> str:
        start = (
            f"{self.configuration.workload:12} {self.configuration.form:17} {self.configuration.precision:9} "
            f"{self.kernel:22} {self.target:7} "
        )
        if self.binary is None:
            return f"{start}{'':5} {self.shared:7} {self.spills:6} {'':6} {'':9} {'':7} {'':9} {self.seconds:7.1f}"
        found = self.binary
        hot = [loop for loop in found.loops if loop.products or loop.exponentials]
        loops = ", ".join(f"{loop.source} {loop.instructions}" for loop in hot)
        narrowest = "/".join(str(min(sizes, default="-")) for sizes in (found.loads, found.copies))
        polls = f"{found.polls}/{found.unordered_polls}"
        return (
            f"{start}{found.registers:5} {found.shared:7} {found.spills:6} {found.instructions:6} "
            f"{polls:9} {narrowest:7} {found.conflicting:9} {self.seconds:7.1f}  {loops}"
        )


HEADER = (
    "workload     form              precision kernel                 target   regs  shared spills   code polls/bad "
    "ld/copy conflicts seconds  loops"
)


def table(chosen: list[Configuration], targets: list[str], show: Callable[[str], None] = print) -> list[Row]:
    """Compiles and shows a line each; a launch that several configurations share is compiled once."""
    show(HEADER)
    seen: set[Any] = set()
    rows = []
    for configuration in chosen:
        for target in targets:
            for launch in configuration.launches(target):
                identity = target, *identity_of(launch, TARGETS[target])
                if identity in seen:
                    continue
                seen.add(identity)
                kernel, seconds = timed(launch, TARGETS[target])
                binary = read(kernel) if "cubin" in kernel.asm else None
                spills = amd_spills(kernel) if binary is None else binary.spills
                rows.append(Row(configuration, launch.name, target, binary, spills, kernel.metadata.shared, seconds))
                show(str(rows[-1]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="only the configurations of the default test run")
    arguments = parser.parse_args()
    table(quick_configurations() if arguments.quick else list(configurations()), arguments.targets)


if __name__ == "__main__":
    main()
