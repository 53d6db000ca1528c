"""`python -m benchmarks stages`: where a step of the `cpp` backend goes, each stage beside a floor of its own.

A stage is run by itself, on the tensors that the whole step would give it. Its floor is what it cannot do without: to
read its map once, to write its gradient once into fresh memory, or its product by the library that PyTorch links.
All stages and floors take turns in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.clock import interleaved, quantiles
from benchmarks.rivals import RIVALS, step_of
from benchmarks.workloads import (
    CUB_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_SHUFFLENETV1,
    CUB_VGG13_VGG8,
    FORMS,
    Workload,
)
from icd_kernels import region_logits
from icd_kernels.geometry import base_scales, cell_count, finest_grid
from icd_kernels.options import DEFAULT_SCALES, make_options
from icd_kernels.problem import lower_gram

WORKLOADS = (CUB_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_SHUFFLENETV1, CUB_VGG13_VGG8)
Action = Callable[[], object]


class Stage(NamedTuple):
    """A part of a step, and the least that part needs."""

    name: str
    run: Action
    floor_name: str
    floor: Action


def stages(workload: Workload, form: str) -> Iterator[Stage]:
    """The stages of forward and backward, in their order, and the whole step last."""
    inputs = workload.inputs()
    student, teacher = inputs.student_features, inputs.teacher_features
    pooled = {}
    for name, features in (("teacher", teacher), ("student", student)):
        pool = _pool(features, _base(features, form))
        pooled[name] = pool()
        yield Stage(f"pool {name}", pool, "read it", features.sum)
    weights = {"teacher": inputs.teacher_weight, "student": inputs.student_weight}
    for name, cells in pooled.items():
        rows = cells.flatten(0, 1)
        product = _product(rows, weights[name].t())
        yield Stage(f"project {name}", product, "the product", product)
    options = FORMS[form]
    student_logits, teacher_logits = (
        region_logits(features, weight, pyramid=options["pyramid"], backend="cpp")
        for features, weight in ((student, inputs.student_weight), (teacher, inputs.teacher_weight))
    )
    yield Stage(
        "Gram, with its gradient",
        _gram(student_logits, teacher_logits, options),
        "copy the logits",
        lambda: (student_logits.clone(), teacher_logits.clone()),
    )
    yield from _backward(student, inputs.student_weight, pooled["student"], form)
    step = step_of(RIVALS["cpp"].loss(**options), inputs)
    eager = step_of(RIVALS["eager"].loss(**options), inputs)
    yield Stage("the whole step", step, "eager", eager)


def _backward(features: Tensor, weight: Tensor, pooled: Tensor, form: str) -> Iterator[Stage]:
    """From dl/dz over the pooled cells to the student's gradients."""
    scales = _base(features, form)
    gradient = torch.randn(features.shape[0] * cell_count(scales), weight.shape[0])
    cells = _product(gradient, weight)
    yield Stage("gradient by pooled features", cells, "the product", cells)
    weights = _product(gradient.t(), pooled.flatten(0, 1))
    yield Stage("gradient by the weight", weights, "the product", weights)
    by_cells = torch.randn_like(pooled)
    layout = (features.shape, features.stride(), features.dtype, scales)
    yield Stage(
        "unpool",
        lambda: torch.ops.icd_kernels.region_features_backward(by_cells, *layout),
        "write it into fresh memory",
        lambda: torch.empty_like(features).fill_(1.0),
    )


def _base(features: Tensor, form: str) -> tuple[int, ...]:
    """The scales that are pooled from the map."""
    return base_scales(DEFAULT_SCALES, finest_grid(DEFAULT_SCALES, FORMS[form]["pyramid"], *features.shape[2:]))


def _pool(features: Tensor, scales: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: torch.ops.icd_kernels.region_features(features, scales)


def _product(left: Tensor, right: Tensor) -> Action:
    return lambda: torch.mm(left, right)


def _gram(student: Tensor, teacher: Tensor, options: dict[str, Any]) -> Action:
    numbers = lower_gram(make_options(**options), student.shape[1])
    return lambda: torch.ops.icd_kernels.gram_kl(student, teacher, *numbers, True)


def table(workload: Workload, form: str, seconds: float) -> str:
    """A row for each stage: its median, its floor's, and their ratio."""
    every = list(stages(workload, form))
    actions: dict[str, Action] = {}
    for stage in every:
        actions[stage.name] = stage.run
        actions[f"{stage.name}: floor"] = stage.floor
    samples = interleaved(actions, seconds)
    lines = [f"| {workload.title}, {form} | ms | floor | ms | over it |", "|---|---|---|---|---|"]
    for stage in every:
        time, floor = (1e3 * quantiles(samples[name])["median"] for name in (stage.name, f"{stage.name}: floor"))
        lines.append(f"| {stage.name} | {time:.2f} | {stage.floor_name} | {floor:.2f} | {time / floor:.2f} |")
    return "\n".join(lines)


def run(seconds: float) -> None:
    """Prints the tables of the CUB rows, spatial, and of one in class form."""
    for workload in WORKLOADS:
        print(table(workload, "spatial", seconds), end="\n\n", flush=True)
    print(table(CUB_RESNET32X4_MOBILENETV2, "class", seconds))
