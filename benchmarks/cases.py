"""What one entry of a result file is about, and the grids of cases that a run goes through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.workloads import (
    CIFAR_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_SHUFFLENETV1,
    FORMS,
    WORKLOADS,
    Inputs,
    Workload,
)
from icd_kernels.geometry import cell_count
from icd_kernels.options import DEFAULT_SCALES

PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float64": (torch.float64, "highest"),
}
"""Dtype of every tensor, and `torch.set_float32_matmul_precision`, for every rival alike."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
CPU_MOST_IMAGES = {21841: 8}
"""Images per batch on a CPU, for heads where a whole batch of design size takes minutes."""

JUDGED_IMAGES = 8
JUDGED_CLASSES = 2048
"""Above this many classes a float64 class Gram is too large to hold."""


class Case(NamedTuple):
    """One workload in one precision, memory layout and form."""

    workload: Workload
    form: str
    precision: str = "float32"
    layout: str = "contiguous"
    scales: tuple[int, ...] = DEFAULT_SCALES
    sweep: str = ""
    """Which size grows, for a point of a sweep: "classes", "batch", "side" of the map or "regions"."""

    @property
    def label(self) -> str:
        """The whole case in one line; `--only` searches it."""
        parts = [self.workload.title, self.workload.shapes, self.precision, self.form]
        parts += [self.layout] if self.layout != "contiguous" else []
        parts += [f"scales {self.scales}"] if self.scales != DEFAULT_SCALES else []
        return ", ".join(parts) + (f"; sweep of {self.sweep}" if self.sweep else "")

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    @property
    def options(self) -> dict[str, Any]:
        """The options of `icd_loss`."""
        return {**FORMS[self.form], "scales": self.scales}

    @property
    def size(self) -> int:
        """The size that grows along the sweep."""
        workload = self.workload
        sizes = {
            "classes": workload.classes,
            "batch": workload.batch,
            "side": workload.student[1],
            "regions": cell_count(self.scales),
        }
        return sizes[self.sweep]

    @property
    def bytes_moved(self) -> int:
        """Every input read once and every gradient of the student written once."""
        workload, elements = self.workload, 0
        for (channels, height, width), times in ((workload.teacher, 1), (workload.student, 2)):
            elements += times * (workload.batch * channels * height * width + workload.classes * (channels + 1))
        return elements * self.dtype.itemsize

    @property
    def gram_bytes(self) -> int:
        """Bytes of the K x K Grams of all images and cells in class form, in the dtype of the math, or 0."""
        if FORMS[self.form]["gram"] != "class":
            return 0
        itemsize = torch.float64.itemsize if self.dtype == torch.float64 else torch.float32.itemsize
        return itemsize * self.workload.batch * cell_count(self.scales) * self.workload.classes**2

    @property
    def summed_rows(self) -> int:
        """Rows whose KL the loss of an image sums, at most."""
        return self.workload.classes if FORMS[self.form]["gram"] == "class" else max(self.scales) ** 2

    def judged(self) -> Case:
        """The case small enough for the float64 reference."""
        workload = self.workload.with_batch(min(self.workload.batch, JUDGED_IMAGES))
        if self.gram_bytes:
            workload = workload._replace(classes=min(workload.classes, JUDGED_CLASSES))
            if workload.classes == JUDGED_CLASSES:
                workload = workload.with_batch(1)
        return self._replace(workload=workload)

    def inputs(self, device: torch.device | str = "cpu", *, seed: int = 0) -> Inputs:
        return self.workload.inputs(self.dtype, device, layout=LAYOUTS[self.layout], seed=seed)

    def facts(self) -> dict[str, Any]:
        """For a result file; :func:`from_facts` is the way back."""
        return {**self._asdict(), "workload": self.workload._asdict()}


def from_facts(facts: dict[str, Any]) -> Case:
    """The case of a result file's entry."""
    shape = facts["workload"]
    workload = Workload(**{**shape, "teacher": tuple(shape["teacher"]), "student": tuple(shape["student"])})
    return Case(**{**facts, "workload": workload, "scales": tuple(facts["scales"])})


def tables(device: str) -> Iterator[Case]:
    """Every workload in every precision; channels-last where maps are large."""
    precisions = ("float32", "tf32", "bfloat16", "float64") if device == "cuda" else ("float32", "bfloat16", "float64")
    for workload in WORKLOADS:
        batch = CPU_MOST_IMAGES.get(workload.classes, workload.batch) if device == "cpu" else workload.batch
        for precision in precisions:
            for form in FORMS:
                yield Case(workload.with_batch(batch), form, precision)
    for workload in (CUB_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_SHUFFLENETV1):
        for form in FORMS:
            yield Case(workload, form, layout="channels-last")


def sweeps() -> Iterator[Case]:
    """One size grows, all else stays."""
    for form in FORMS:
        for classes in (100, 200, 500, 1000, 2000, 5000, 10000, 21841):
            workload = Workload("ResNet50→MobileNetV2 maps", 4, (2048, 7, 7), (1280, 7, 7), classes)
            yield Case(workload, form, sweep="classes")
        for batch in (1, 4, 16, 64, 256, 1024, 4096):
            yield Case(CIFAR_RESNET32X4_MOBILENETV2.with_batch(batch), form, sweep="batch")
        for side in (1, 2, 4, 7, 14, 28, 56):
            yield Case(Workload("square maps", 16, (256, side, side), (256, side, side), 100), form, sweep="side")
        for scales in ((1,), (1, 2), (1, 2, 4), (1, 2, 4, 8), (1, 2, 4, 8, 14)):
            yield Case(CUB_RESNET32X4_SHUFFLENETV1.with_batch(16), form, scales=scales, sweep="regions")


def small() -> Iterator[Case]:
    """A minute's worth: what is checked before a change is in."""
    for form in FORMS:
        yield Case(CIFAR_RESNET32X4_MOBILENETV2, form)
        yield Case(CUB_RESNET32X4_MOBILENETV2.with_batch(16), form)


def grid(name: str, device: str) -> list[Case]:
    """The cases of "full" or "small" in the order of a run."""
    return list(small()) if name == "small" else [*tables(device), *sweeps()]
