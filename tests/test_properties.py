"""Drawn cases: any shapes, strides, dtypes, scales and options, judged against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cases import CASES_RUN, COMPILED, Case, Limits, case_strategy
from hypothesis import given
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("backend", COMPILED)
@given(case=case_strategy())
def test_icd_loss(backend: str, case: Case) -> None:
    judge("icd_loss", icd_loss_problem, case, backend)


@pytest.mark.parametrize("backend", COMPILED)
@given(case=case_strategy())
def test_region_logits(backend: str, case: Case) -> None:
    judge("region_logits", region_logits_problem, case, backend)


@pytest.mark.parametrize("backend", COMPILED)
@given(case=case_strategy())
def test_gram_kl(backend: str, case: Case) -> None:
    judge("gram_kl", gram_kl_problem, case, backend)


@pytest.mark.parametrize("backend", COMPILED)
@given(case=case_strategy(Limits(batch=1, channels=4, side=5, classes=200, fewest_classes=90, scale=2, scales=2)))
def test_icd_loss_of_many_classes(backend: str, case: Case) -> None:
    """Enough of them for the class form's other sum, and for vectors of every length to run out."""
    judge("icd_loss of many classes", icd_loss_problem, case, backend)


def judge(name: str, problem: Callable[[Case], Problem], case: Case, backend: str) -> None:
    CASES_RUN[f"{name} by {backend}"] += 1
    assert_no_worse_than_eager(problem(case), backend, threads=case.threads)
