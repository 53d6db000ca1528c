"""`python -m benchmarks.objective_ops`: what iCD-KD costs beside plain KD, ours and the released code's op by op.

Operations and host waits of a step's loss, forward and backward, counted on a CPU; then times on this CPU, of the loss
alone and of the whole training step of ResNet32x4 → MobileNetV2 on 32 x 32 images: student forward, teacher forward,
loss, backward. All rivals take turns step by step, so that a busy moment meets them alike; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import operations, released_eager
from benchmarks.cifar_networks import Classifier, mobilenetv2, resnet32x4
from benchmarks.machine import facts
from benchmarks.workloads import CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2, Workload
from icd_kernels import NetworkOutput, available_backends, make_objective
from icd_kernels.heads import head_parameters

Loss = Callable[[NetworkOutput, NetworkOutput, Tensor], Tensor]
Step = Callable[[], object]

RELEASED = "iCD-KD, released, op by op"
KD = "KD"
CPU_BACKENDS = ("cpp", "reference")
MIN_ROUNDS = 5


class Counted(NamedTuple):
    """A row of the first table."""

    name: str
    counts: operations.Counts


def losses(classes: int) -> dict[str, Loss]:
    """Every rival's whole loss of a batch."""
    named: dict[str, Loss] = {KD: _objective("kd", classes, "auto"), RELEASED: released_icd_kd}
    for backend in (name for name in available_backends() if name in CPU_BACKENDS):
        named[f"iCD-KD, {backend}"] = _objective("icd-kd", classes, backend)
    return named


def _objective(method: str, classes: int, backend: str) -> Loss:
    objective = make_objective(method, num_classes=classes, backend=backend)
    return lambda student, teacher, target: objective(student, teacher, target).total


def released_icd_kd(student: NetworkOutput, teacher: NetworkOutput, target: Tensor) -> Tensor:
    """`released_eager.icd_kd` with an objective's arguments."""
    features, weight, bias = map_and_head(student)
    teacher_features, teacher_weight, teacher_bias = map_and_head(teacher)
    return released_eager.icd_kd(
        features, weight, teacher_features, teacher_weight, bias, teacher_bias, student.logits, target
    )


def map_and_head(network: NetworkOutput) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, weight and bias; here every network gives them."""
    assert network.features is not None
    assert network.head is not None
    return network.features, *head_parameters(network.head)


def counts(batch: int = 64) -> list[Counted]:
    """Operations and host waits of forward and backward, by rival."""
    workload = CIFAR_RESNET32X4_MOBILENETV2.with_batch(batch)
    inputs = workload.inputs()
    term = operations.count(lambda: torch.autograd.grad(released_eager.icd_loss(*inputs), inputs.leaves()))
    steps = loss_steps(workload)
    return [
        Counted("iCD alone, released, op by op", term),
        *(Counted(name, operations.count(step)) for name, step in steps.items()),
    ]


def loss_steps(workload: Workload) -> dict[str, Step]:
    """Forward and backward of every rival's loss; maps, heads and global logits are given."""
    inputs = workload.inputs()
    student_head, teacher_head = (
        (inputs.student_weight, inputs.student_bias),
        (inputs.teacher_weight, inputs.teacher_bias),
    )
    with torch.no_grad():
        student_logits = inputs.student_features.mean((2, 3)) @ student_head[0].t() + student_head[1]
        teacher_logits = inputs.teacher_features.mean((2, 3)) @ teacher_head[0].t() + teacher_head[1]
    student = NetworkOutput(student_logits.requires_grad_(), inputs.student_features, student_head)
    teacher = NetworkOutput(teacher_logits, inputs.teacher_features, teacher_head)
    target = torch.randint(workload.classes, (workload.batch,), generator=torch.Generator().manual_seed(0))

    def step_of(loss: Loss) -> Step:
        leaves = (student_logits, *inputs.leaves())
        return lambda: torch.autograd.grad(loss(student, teacher, target), leaves, allow_unused=True)

    return {name: step_of(loss) for name, loss in losses(workload.classes).items()}


def whole_steps(batch: int, classes: int) -> dict[str, Step]:
    """A training step without the optimizer's, by rival."""
    torch.manual_seed(0)
    teacher, student = resnet32x4(classes).eval(), mobilenetv2(classes)
    images, target = torch.randn(batch, 3, 32, 32), torch.randint(classes, (batch,))

    def step_of(loss: Loss) -> Step:
        def step() -> None:
            student.zero_grad(set_to_none=True)
            loss(student(images), _constant(teacher, images), target).backward()

        return step

    return {name: step_of(loss) for name, loss in losses(classes).items()}


def _constant(network: Classifier, images: Tensor) -> NetworkOutput:
    with torch.no_grad():
        return network(images)


def median_times(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Median seconds of a step, the rivals in turn for about `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    rounds = -1  # the first is a warm-up
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if rounds >= 0:
                times[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def print_times(title: str, steps: dict[str, Step], seconds: float) -> None:
    times = median_times(steps, seconds)
    print(f"\n{title}\n\n| | ms | times KD |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {1e3 * value:.2f} | {value / times[KD]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--batch", type=int, default=64, help="images per batch (default: 64)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table of times, about (default: 20)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(", ".join(f"{name} {value}" for name, value in facts(arguments.threads).items()))
    print("\nA step's loss, forward and backward\n\n| | operations | host waits |\n|---|---|---|")
    for row in counts(arguments.batch):
        print(f"| {row.name} | {row.counts.operations} | {row.counts.syncs} |")
    for workload in (CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2):
        workload = workload.with_batch(arguments.batch)
        title = f"The loss alone, {workload.title}, B = {workload.batch}"
        print_times(title, loss_steps(workload), arguments.seconds)
    title = f"The whole step, CIFAR-100 ResNet32x4→MobileNetV2, B = {arguments.batch}"
    print_times(title, whole_steps(arguments.batch, 100), arguments.seconds)


if __name__ == "__main__":
    main()
