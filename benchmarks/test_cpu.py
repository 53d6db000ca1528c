"""Microbenchmarks of the CPU's rivals: `pytest benchmarks --benchmark-only`, each found correct before it is timed."""

from __future__ import annotations

import time
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import judge
from benchmarks.cases import Case
from benchmarks.rivals import COMPILED, CPP, EAGER, RELEASED, Rival, Step
from benchmarks.workloads import CUB_RESNET32X4_MOBILENETV2, FORMS, IMAGENET_RESNET50_MOBILENETV2

MIN_ROUNDS = 5
MAX_ROUNDS = 200
CASES = [
    Case(workload, form)
    for workload in (CUB_RESNET32X4_MOBILENETV2, IMAGENET_RESNET50_MOBILENETV2.with_batch(8))
    for form in FORMS
]


@cache
def truth_of(case: Case) -> judge.Truth:
    return judge.Truth.of(case)


@pytest.mark.parametrize("rival", [EAGER, RELEASED, COMPILED, CPP], ids=lambda rival: rival.name)
@pytest.mark.parametrize("case", CASES, ids=[f"{case.workload.slug}-{case.form}" for case in CASES])
def test_forward_backward(benchmark: BenchmarkFixture, case: Case, rival: Rival, seconds: float) -> None:
    if reason := rival.why_not(case, "cpu"):
        pytest.skip(reason)
    figures, wrong = truth_of(case).verdict(rival)
    assert not wrong
    step = rival.forward_backward(case.inputs(), **case.options)
    step()
    benchmark.group = case.label
    benchmark.extra_info.update(case=case.facts(), rival=rival.name, **figures)
    benchmark.pedantic(step, rounds=_rounds(step, seconds), warmup_rounds=1)


def _rounds(step: Step, seconds: float) -> int:
    start = time.perf_counter()
    step()
    return int(min(max(seconds / (time.perf_counter() - start), MIN_ROUNDS), MAX_ROUNDS))
