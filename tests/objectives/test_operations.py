"""What a step dispatches: nothing the host waits for, and far fewer operations than the released code."""

from __future__ import annotations

import pytest
import torch
from networks import EVERY_METHOD, example, objective_of
from torch import Tensor

from benchmarks import operations
from benchmarks.objective_steps import Entrant, objective_step
from benchmarks.workloads import CIFAR_RESNET32X4_MOBILENETV2
from icd_kernels.backends import cpp


@pytest.mark.parametrize("released", [False, True], ids=["right", "released"])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_host_never_waits(method: str, released: bool) -> None:
    batch = example(torch.float32)
    objective = objective_of(method, released=released)

    def train() -> None:
        objective(*batch[:3], epoch=1, indices=batch.indices, sample_weight=torch.ones(6)).total.backward()

    assert operations.count(train).syncs == 0


def test_the_counter_sees_waits_and_work() -> None:
    values, mask = torch.ones(3), torch.tensor([True, False, True])

    def work(tensor: Tensor) -> Tensor:
        return (tensor * 2).view(3, 1).sum()

    assert operations.count(lambda: work(values)) == operations.Counts(2, 0)
    for wait in (lambda: values.sum().item(), lambda: bool(mask.any()), lambda: values[mask], lambda: mask.nonzero()):
        assert operations.count(wait).syncs == 1
    assert operations.count(lambda: values.masked_fill(mask, 0.0)).syncs == 0


@pytest.mark.skipif(cpp.CPP.missing is not None, reason=f"backend 'cpp' is missing: {cpp.CPP.missing}")
def test_a_fraction_of_the_released_operations() -> None:
    workload = CIFAR_RESNET32X4_MOBILENETV2.with_batch(2)
    released, ours = (
        operations.count(objective_step(workload, Entrant("icd-kd", way).loss(workload.classes)))
        for way in ("released", "ours")
    )
    assert released.syncs == 3
    assert ours.syncs == 0
    assert ours.operations * 4 < released.operations
