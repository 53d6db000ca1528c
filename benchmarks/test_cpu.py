"""The CPU figures: forward + backward in float32, every rival on every workload, gated and with its peak memory."""

from __future__ import annotations

import time
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import judge, memory
from benchmarks.rivals import CPU_RIVALS, EAGER, Rival, Step
from benchmarks.settings import Settings
from benchmarks.workloads import (
    CUB_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_SHUFFLENETV1,
    FORMS,
    IMAGENET_RESNET50_MOBILENETV2,
    Inputs,
    Workload,
)
from icd_kernels.backends import BACKENDS
from icd_kernels.options import DEFAULT_SCALES

MIN_ROUNDS = 5
MAX_ROUNDS = 200

CASES = (
    (CUB_RESNET32X4_MOBILENETV2, "spatial"),
    (CUB_RESNET32X4_SHUFFLENETV1, "spatial"),
    (CUB_RESNET32X4_MOBILENETV2, "class"),
    (IMAGENET_RESNET50_MOBILENETV2.with_batch(8), "class"),
)


class Truth(NamedTuple):
    """A workload's tensors, and what eager PyTorch and the float64 reference make of them."""

    inputs: Inputs
    eager: tuple[Tensor, ...]
    exact: tuple[Tensor, ...]


@cache
def truth(workload: Workload, form: str) -> Truth:
    inputs = workload.inputs()
    eager = EAGER.forward_backward(inputs, **FORMS[form])()
    return Truth(inputs, eager, judge.exact_results(inputs, **FORMS[form]))


@pytest.mark.parametrize("rival", CPU_RIVALS, ids=lambda rival: rival.name)
@pytest.mark.parametrize(("workload", "form"), CASES, ids=[f"{case[0].slug}-{case[1]}" for case in CASES])
def test_forward_backward(
    benchmark: BenchmarkFixture, workload: Workload, form: str, rival: Rival, settings: Settings
) -> None:
    _skip_if_missing(rival)
    if settings.batch is not None:
        workload = workload.with_batch(settings.batch)
    inputs, eager, exact = truth(workload, form)
    step = rival.forward_backward(inputs, **FORMS[form])
    errors = judge.check(step(), eager, exact, summed_rows=_summed_rows(workload, form))
    used = memory.measure(workload, form, rival, settings.threads)

    benchmark.group = f"{workload.title}, {form}, B = {workload.batch}"
    benchmark.extra_info.update(_facts(workload, form, rival, errors, used, settings.threads))
    benchmark.pedantic(step, rounds=_rounds(step, settings.seconds), warmup_rounds=1)


def _skip_if_missing(rival: Rival) -> None:
    backend = next(backend for backend in BACKENDS if backend.name == rival.backend)
    if backend.missing is not None:
        pytest.skip(f"backend {rival.backend!r} is missing: {backend.missing}")


def _summed_rows(workload: Workload, form: str) -> int:
    """Rows whose KL the loss of an image sums, at most."""
    return workload.classes if FORMS[form]["gram"] == "class" else max(DEFAULT_SCALES) ** 2


def _rounds(step: Step, seconds: float) -> int:
    start = time.perf_counter()
    step()
    return int(min(max(seconds / (time.perf_counter() - start), MIN_ROUNDS), MAX_ROUNDS))


def _facts(
    workload: Workload, form: str, rival: Rival, errors: dict[str, float], used: memory.Memory, threads: int
) -> dict[str, Any]:
    """What the JSON file keeps beside the times."""
    return {
        "workload": workload._asdict(),
        "form": form,
        "options": FORMS[form],
        "rival": rival.name,
        "dtype": str(torch.float32),
        "threads": threads,
        "errors": errors,
        "extra_peak_bytes": used.extra_peak,
        "gradient_bytes": used.gradients,
        "is_memory_measured": used.is_measured,
        "gram_bytes": memory.gram_bytes(workload) if FORMS[form]["gram"] == "class" else 0,
    }
