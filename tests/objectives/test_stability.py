"""Hard numbers: logits to 1e4 and float16, beside what the released formulas make of them."""

from __future__ import annotations

import formulas
import pytest
import torch
from networks import EVERY_METHOD, LOGIT_METHODS, example, objective_of
from torch import Tensor
from torch.testing import assert_close

from benchmarks.objective_stability import SIZES, hard_rows
from benchmarks.objective_stability import table as stability_table
from icd_kernels import sdd_loss

NUMBERS = {"temperature": 4.0, "alpha": 1.0, "beta": 2.0, "gamma": 2.0}
"""The defaults of `sdd_loss`."""

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
def test_any_size_of_logits(base: str, size: float, dtype: torch.dtype) -> None:
    """Loss and gradient are finite and those of exact arithmetic on the rounded logits."""
    student, teacher, target = hard_rows(size, dtype)
    student.requires_grad_()
    loss = sdd_loss(student, teacher, target, base=base, reduction="none")
    exact_student, exact_teacher = (logits.detach().double() for logits in (student, teacher))
    expected = formulas.sdd(
        exact_student.transpose(1, 2).tolist(),
        exact_teacher.transpose(1, 2).tolist(),
        target.tolist(),
        base,
        2.0,
        NUMBERS,
    )
    assert_close(loss.detach().double(), torch.tensor(expected).double(), rtol=2e-5, atol=2e-5 * max(size, 1.0))
    exact_student.requires_grad_()
    gradients = [
        torch.autograd.grad(sdd_loss(s, t, target, base=base), s)[0].double()
        for s, t in ((student, teacher), (exact_student, exact_teacher))
    ]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert_close(*gradients, rtol=2 * torch.finfo(dtype).eps + 2e-3, atol=1e-3)


def test_the_table_shows_what_the_released_formulas_do() -> None:
    """Ours is finite everywhere; the released DKD is infinite for a confident wrong student, its NaN hidden as 0."""
    rows = stability_table()
    assert {row.base for row in rows} == {"kd", "dkd", "nkd"}
    assert all(row.ours_is_finite for row in rows)
    broken = [row for row in rows if row.base == "dkd" and row.size == max(SIZES)]
    assert broken
    assert all("inf" in row.released or "NaN" in row.released for row in broken)


@pytest.mark.parametrize("base", ["dkd", "nkd"])
def test_the_true_class_is_really_removed(base: str) -> None:
    """With the true class a million above the others, relations among the others still show."""
    student, teacher = (torch.randn(2, 5, 1, dtype=torch.float64) for _ in range(2))
    target = torch.tensor([0, 4])
    for logits in (student, teacher):
        logits.scatter_(1, target[:, None, None], 1e6)
    expected = formulas.sdd(
        student.transpose(1, 2).tolist(), teacher.transpose(1, 2).tolist(), target.tolist(), base, 2.0, NUMBERS
    )
    got = sdd_loss(student, teacher, target, base=base, reduction="none")
    assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert (got > 0).all()


@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
def test_two_classes(base: str) -> None:
    """The other classes are one class: no relation, no gradient, nothing NaN."""
    student, teacher, target = _two_classes()
    alone = sdd_loss(student, teacher, target, base=base, alpha=0.0, gamma=7.0, beta=9.0)
    gradient = torch.autograd.grad(alone, student)[0]
    assert gradient.isfinite().all()
    if base == "dkd":
        assert alone == 0
        assert not gradient.any()
    if base == "nkd":
        assert_close(alone, sdd_loss(student, teacher, target, base=base, gamma=0.0))


def _two_classes() -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (1e3 * torch.randn(4, 2, 5) for _ in range(2))
    return student.requires_grad_(), teacher, torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize("what", ["nan", "inf"])
@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
def test_nan_is_not_hidden(base: str, what: str) -> None:
    student, teacher, target = hard_rows(1.0, torch.float32)
    student[1, 2, 3] = float(what)
    loss = sdd_loss(student, teacher, target, base=base, reduction="none")
    assert loss[1].isnan()
    assert loss[[0, 2, 3]].isfinite().all()
    hidden = sdd_loss(student, teacher, target, base=base, reduction="none", released=True)
    assert hidden.isfinite().all()


def test_hidden_nan_has_no_gradient_when_released() -> None:
    student, teacher, target = hard_rows(1.0, torch.float32)
    student[1, 2, 3] = float("nan")
    student.requires_grad_()
    gradient = torch.autograd.grad(sdd_loss(student, teacher, target, base="dkd", released=True), student)[0]
    assert gradient.isfinite().all()
    assert not gradient[1, :, 3].any()
    assert gradient[1, :, 0].any()


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_objective_at_large_logits(method: str) -> None:
    batch = example(torch.float32, size=1e4)
    out = objective_of(method)(*batch[:3], epoch=20, indices=batch.indices)
    assert out.total.isfinite()
    grads = torch.autograd.grad(out.total, batch.leaves, allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_an_empty_batch(method: str) -> None:
    batch = example(batch=0)
    assert objective_of(method)(*batch[:3], epoch=1).total.isnan()
    assert objective_of(method, reduction="sum")(*batch[:3], epoch=1).total == 0
