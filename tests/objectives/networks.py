"""Small networks' outputs for the tests of objectives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icd_kernels import NetworkOutput, make_objective
from icd_kernels.objectives import METHODS, Objective

BATCH, CLASSES, ROWS = 6, 9, 40
STUDENT_CHANNELS, TEACHER_CHANNELS = 5, 7

CRD_OPTIONS = {
    "student_channels": STUDENT_CHANNELS,
    "teacher_channels": TEACHER_CHANNELS,
    "dataset_size": ROWS,
    "num_negatives": 12,
    "embedding_size": 8,
}


class Example(NamedTuple):
    """A batch: both networks, class indices and positions in the data set."""

    student: NetworkOutput
    teacher: NetworkOutput
    target: Tensor
    indices: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What the student trains: logits (a leaf here), features, weight and bias."""
        return self.student.logits, *map_and_head(self.student)


def map_and_head(network: NetworkOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and bias of a network of :func:`example`, which has them all."""
    assert network.features is not None
    assert isinstance(network.head, tuple)
    weight, bias = network.head
    assert bias is not None
    return network.features, weight, bias


def example(
    dtype: torch.dtype = torch.float64,
    *,
    classes: int = CLASSES,
    batch: int = BATCH,
    size: float = 3.0,
    heights: tuple[int, int] = (6, 8),
    seed: int = 0,
) -> Example:
    """Random numbers; logits of about `size`. Global logits are leaves of their own, so that each gradient shows."""
    generator = torch.Generator().manual_seed(seed)

    def network(channels: int, height: int) -> NetworkOutput:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        tensors = (
            size * normal(batch, classes), normal(batch, channels, height, height + 1).relu(),
            size * normal(classes, channels), normal(classes),
        )  # fmt: skip
        logits, features, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        return NetworkOutput(logits, features, (weight, bias))

    target = torch.randint(classes, (batch,), generator=generator)
    indices = torch.randperm(ROWS, generator=generator)[:batch]
    return Example(network(STUDENT_CHANNELS, heights[0]), network(TEACHER_CHANNELS, heights[1]), target, indices)


def objective_of(method: str, **options: Any) -> Objective:
    """An objective for :func:`example`, CRD's sizes filled in."""
    torch.manual_seed(0)
    options = {"num_classes": CLASSES, "backend": "reference", **(CRD_OPTIONS if method == "crd" else {}), **options}
    return make_objective(method, **options)


EVERY_METHOD = METHODS
LOGIT_METHODS = METHODS[3:]
