"""Images without a label, all of them or some, and targets that are none."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch
from networks import EVERY_METHOD, LOGIT_METHODS, example, objective_of
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import sdd_loss


def total(method: str, target: Tensor | None, **options: Any) -> Tensor:
    batch = example(torch.float32)
    torch.manual_seed(3)
    return objective_of(method, **options)(*batch[:2], target, epoch=20, indices=batch.indices).total


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_without_a_target_the_teachers_class_stands_in(method: str) -> None:
    """So SD-*, DKD and NKD equal what they are with it as the label; the others read none."""
    standing_in = example(torch.float32).teacher.logits.argmax(1)
    assert_close(total(method, None, ce_weight=0), total(method, standing_in, ce_weight=0))


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_so_it_does_for_single_images(method: str) -> None:
    batch = example(torch.float32)
    some = torch.where(torch.arange(6) % 2 == 0, -100, batch.target)
    filled = torch.where(some == -100, batch.teacher.logits.argmax(1), batch.target)
    assert_close(total(method, some, ce_weight=0), total(method, filled, ce_weight=0))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_term_is_divided_by_the_batch(reduction: str) -> None:
    """-100 and a weight of 0 do the same to cross-entropy, for every reduction."""
    batch = example(torch.float32)
    keep = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    target = torch.where(keep == 0, -100, batch.target)
    objective = objective_of("kd", reduction=reduction)
    unlabelled = objective(*batch[:2], target).components["ce"]
    weighted = objective(*batch[:3], sample_weight=keep).components["ce"]
    assert_close(unlabelled, weighted)
    assert_close(objective(*batch[:2], target, sample_weight=torch.ones(6)).components["ce"], unlabelled)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_no_label_at_all_gives_zero(smoothing: float) -> None:
    """Not NaN, as a division by the labelled images would."""
    batch = example(torch.float32)
    none = torch.full((6,), -100)
    out = objective_of("kd", base_weight=0, ce_weight=1, label_smoothing=smoothing)(*batch[:2], none)
    assert out.total == 0
    out.total.backward()
    assert batch.student.logits.grad is not None
    assert not batch.student.logits.grad.any()
    assert objective_of("kd", ce_weight=0)(*batch[:2], none).total > 0


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_no_target_with_cross_entropy_is_an_error(method: str) -> None:
    with pytest.raises(ValueError, match=r"target must be given where ce_weight is .*pass ce_weight=0, got None"):
        total(method, None)


@pytest.mark.parametrize("method", ["kd", "sd-dkd"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.full((6, 9), 1.0), r"sum to 1 in every row, got sums from 9 to 9; .*multi-label"),
        (torch.eye(9)[:6] * 3 - torch.eye(9)[1:7] * 2, "must be 0 or more"),
        (torch.tensor([0, 1, 2, 3, 4, 9]), r"classes from 0 to 8, or -100 .*got 0 to 9"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), r"classes from 0 to 8, or -100 .*got -1 to 4"),
    ],
)
def test_wrong_values(method: str, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        total(method, target)


def test_wrong_values_of_sdd_loss() -> None:
    logits = torch.randn(2, 3, 5)
    with pytest.raises(ValueError, match="multi-label"):
        sdd_loss(logits, logits, torch.ones(2, 3))
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        sdd_loss(logits, logits, torch.tensor([0, 3]))


@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
def test_sdd_loss_without_labels(base: str) -> None:
    student, teacher = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    whole = teacher[:, :, 0].argmax(1)
    expected = sdd_loss(student, teacher, whole, base=base)
    assert_close(sdd_loss(student, teacher, base=base), expected)
    assert_close(sdd_loss(student, teacher, torch.full((4,), -100), base=base), expected)


@pytest.mark.parametrize("base", ["dkd", "nkd"])
def test_mixed_images_by_their_two_labels(base: str) -> None:
    """The stated way to two true classes: the objective once for each, by their shares (docs/objectives.md)."""
    batch = example()
    share, other = 0.3, batch.target.roll(1)
    objective = objective_of(base)
    mixed = share * objective(*batch[:2], other, epoch=20).total
    mixed = mixed + (1 - share) * objective(*batch[:3], epoch=20).total
    numbers: dict[str, Any] = {"temperature": 4.0, "alpha": 1.0, "beta": 2.0}
    if base == "nkd":
        numbers = {"temperature": 1.0, "gamma": 1.5}
    expected = 0.0
    for s, t, a, b in zip(
        *(x.tolist() for x in (batch.student.logits, batch.teacher.logits, other, batch.target)), strict=True
    ):
        for y, weight in ((a, share), (b, 1 - share)):
            row = formulas.ROWS[base](s, t, y, **numbers) - formulas.log_softmax(s)[y]
            expected += weight * row / 6
    assert mixed.item() == pytest.approx(expected, rel=1e-9)


def test_label_smoothing_is_pytorchs() -> None:
    batch = example()
    hard = objective_of("kd", label_smoothing=0.3)(*batch[:3]).components["ce"]
    assert_close(
        hard, torch.nn.functional.cross_entropy(batch.student.logits, batch.target, label_smoothing=0.3).detach()
    )
    soft = torch.softmax(batch.teacher.logits.detach(), 1)
    got = objective_of("kd", label_smoothing=0.3)(*batch[:2], soft).components["ce"]
    assert_close(got, torch.nn.functional.cross_entropy(batch.student.logits, soft, label_smoothing=0.3).detach())
