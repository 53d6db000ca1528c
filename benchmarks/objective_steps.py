"""Whole objectives and whole training steps: KD, SD-KD and iCD-KD; ours, plain PyTorch, and the released code's way.

"ours" is the fastest backend of the device, "eager" the same objective with `backend="reference"`, "released" the
authors' formulation restated op by op. An objective's step is its forward and backward with maps, heads and logits
given; a training step is student forward, teacher forward, loss, and backward, without the optimizer's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import released_eager
from benchmarks.memory import extra_peak
from benchmarks.workloads import Workload
from icd_kernels import NetworkOutput, make_objective
from icd_kernels.heads import head_parameters
from training.networks import Classifier
from training.paper_networks import BODIES

Loss = Callable[[NetworkOutput, NetworkOutput, Tensor], Tensor]
Step = Callable[[], object]

LARGE_IMAGE = 224
"""Pixels a side of CUB-200's images; CIFAR-100's have 32."""
METHODS = ("kd", "sd-kd", "icd-kd")
WAYS = {"ours": "auto", "eager": "reference"}
"""The backend of each way; "released" is a formulation of its own."""


class Entrant(NamedTuple):
    """A method computed in one way."""

    method: str
    way: str

    @property
    def name(self) -> str:
        return f"{self.method}, {self.way}"

    def loss(self, classes: int) -> Loss:
        if self.way == "released":
            return _released(self.method)
        objective = make_objective(self.method, num_classes=classes, backend=WAYS[self.way])
        return lambda student, teacher, target: objective(student, teacher, target).total


def entrants() -> list[Entrant]:
    """Every method in every way; plain KD reads no map, so its ways do not differ."""
    return [Entrant("kd", "ours")] + [Entrant(method, way) for method in METHODS[1:] for way in (*WAYS, "released")]


def _released(method: str) -> Loss:
    function = {"sd-kd": released_eager.sd_kd_objective, "icd-kd": released_eager.icd_kd}[method]

    def loss(student: NetworkOutput, teacher: NetworkOutput, target: Tensor) -> Tensor:
        features, weight, bias = map_and_head(student)
        teacher_features, teacher_weight, teacher_bias = map_and_head(teacher)
        return function(features, weight, teacher_features, teacher_weight, bias, teacher_bias, student.logits, target)

    return loss


def map_and_head(network: NetworkOutput) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, weight and bias; here every network gives them."""
    assert network.features is not None
    assert network.head is not None
    return network.features, *head_parameters(network.head)


def objective_step(workload: Workload, loss: Loss, device: str = "cpu") -> Step:
    """Forward and backward of a loss; maps, heads and global logits are given."""
    inputs = workload.inputs(device=device)
    student_head = (inputs.student_weight, inputs.student_bias)
    teacher_head = (inputs.teacher_weight, inputs.teacher_bias)
    with torch.no_grad():
        student_logits = inputs.student_features.mean((2, 3)) @ student_head[0].t() + student_head[1]
        teacher_logits = inputs.teacher_features.mean((2, 3)) @ teacher_head[0].t() + teacher_head[1]
    student = NetworkOutput(student_logits.requires_grad_(), inputs.student_features, student_head)
    teacher = NetworkOutput(teacher_logits, inputs.teacher_features, teacher_head)
    target = torch.randint(workload.classes, (workload.batch,), generator=torch.Generator().manual_seed(0)).to(device)
    leaves = (student_logits, *inputs.leaves())
    return lambda: torch.autograd.grad(loss(student, teacher, target), leaves, allow_unused=True)


def objective_steps(workload: Workload, losses: dict[str, Loss], device: str = "cpu") -> dict[str, Step]:
    """:func:`objective_step` of every loss."""
    return {name: objective_step(workload, loss, device) for name, loss in losses.items()}


class Training(NamedTuple):
    """What a training step runs on."""

    batch: int
    side: int
    classes: int

    @property
    def title(self) -> str:
        data = "CUB-200" if self.side == LARGE_IMAGE else "CIFAR-100"
        return f"{data} ResNet32x4→MobileNetV2, B {self.batch}, images of {self.side} x {self.side}, K {self.classes}"

    def steps(self, losses: dict[str, Loss], device: str = "cpu") -> dict[str, Step]:
        """A step by each loss; all train the same student on the same images."""
        torch.manual_seed(0)
        teacher = untrained("resnet32x4", self.side, self.classes).eval().to(device)
        student = untrained("mobilenetv2", self.side, self.classes).to(device)
        images = torch.randn(self.batch, 3, self.side, self.side).to(device)
        target = torch.randint(self.classes, (self.batch,)).to(device)

        def step_of(loss: Loss) -> Step:
            def step() -> None:
                student.zero_grad(set_to_none=True)
                loss(student(images), _constant(teacher, images), target).backward()

            return step

        return {name: step_of(loss) for name, loss in losses.items()}


CUB_ON_GPU = Training(64, LARGE_IMAGE, 200)
CUB_ON_CPU = Training(16, LARGE_IMAGE, 200)
CIFAR = Training(64, 32, 100)


def untrained(name: str, side: int, classes: int) -> Classifier:
    """A network of the paper's tables, as train_example.py trains it but laid out channels first."""
    return Classifier(*BODIES[name](3, side), classes)


def _constant(network: Classifier, images: Tensor) -> NetworkOutput:
    with torch.no_grad():
        return network(images)


def main(argument: str) -> None:
    """Prints the extra peak memory of a training step, the second of its process."""
    training, method, way, threads = json.loads(argument)
    torch.set_num_threads(threads)
    chosen = Training(*training)
    (step,) = chosen.steps({"": Entrant(method, way).loss(chosen.classes)}).values()
    step()
    extra: dict[str, Any] = {"extra_peak": extra_peak(step)[0]}
    print(json.dumps(extra))


if __name__ == "__main__":
    main(sys.argv[1])
