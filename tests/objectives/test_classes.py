"""Heads whose classes differ, and classes that an image does not have."""

from __future__ import annotations

import copy
import math
from typing import Any

import formulas
import pytest
import torch
from networks import EVERY_METHOD, LOGIT_METHODS, Example, example, map_and_head, objective_of
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import NetworkOutput, sdd_loss
from icd_kernels.backends import cpp

PAIRED = {"student_classes": [4, 0, 7], "teacher_classes": [8, 2, 3]}
LOCAL = [method for method in LOGIT_METHODS if "-" in method]
BACKENDS = ["reference", *(["cpp"] if cpp.CPP.missing is None else [])]


def cut(network: NetworkOutput, classes: list[int]) -> NetworkOutput:
    """A network with these classes alone."""
    _, weight, bias = map_and_head(network)
    return network._replace(logits=network.logits[:, classes], head=(weight[classes], bias[classes]))


def gradients(method: str, batch: Example, target: Tensor | None, backend: str, **options: Any) -> list[Any]:
    """Total and gradients, the same random numbers each time."""
    objective = objective_of(method, backend=backend, ce_weight=0, **options).double()
    torch.manual_seed(3)
    total = objective(*batch[:2], target, epoch=20, indices=batch.indices).total
    return [total, *torch.autograd.grad(total, batch.leaves, allow_unused=True)]


class TestPairs:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("method", EVERY_METHOD)
    def test_are_the_same_as_smaller_heads(self, method: str, backend: str) -> None:
        batch = example()
        labels = torch.tensor([0, 1, 2, 2, 1, 0])
        target = torch.tensor(PAIRED["student_classes"])[labels]
        got = gradients(method, batch, target, backend, num_classes=3, **PAIRED)
        smaller = batch._replace(
            student=cut(batch.student, PAIRED["student_classes"]), teacher=cut(batch.teacher, PAIRED["teacher_classes"])
        )
        objective = objective_of(method, backend=backend, ce_weight=0, num_classes=3).double()
        torch.manual_seed(3)
        total = objective(*smaller[:2], labels, epoch=20, indices=batch.indices).total
        expected = [total, *torch.autograd.grad(total, batch.leaves, allow_unused=True)]
        assert_close(got, expected)

    def test_cross_entropy_is_over_all_of_the_students_classes(self) -> None:
        batch = example()
        out = objective_of("kd", num_classes=3, **PAIRED)(*batch[:3])
        assert_close(
            out.components["ce"], torch.nn.functional.cross_entropy(batch.student.logits, batch.target).detach()
        )

    @pytest.mark.parametrize("base", ["dkd", "nkd"])
    def test_a_label_in_no_pair_is_no_label(self, base: str) -> None:
        batch = example()
        outside = torch.full((6,), 8)
        paired_teacher = batch.teacher.logits[:, PAIRED["teacher_classes"]].argmax(1)
        standing_in = torch.tensor(PAIRED["student_classes"])[paired_teacher]
        assert_close(*(gradients(base, batch, y, "reference", num_classes=3, **PAIRED) for y in (outside, standing_in)))

    def test_a_growing_student(self) -> None:
        """New classes of the student's head have no pair; the old ones keep their places."""
        batch = example()
        old = batch._replace(teacher=cut(batch.teacher, list(range(5))))
        out = objective_of("icd-dkd", num_classes=5, student_classes=range(5))(*old[:3], epoch=20)
        assert out.total.isfinite()
        assert sorted(objective_of("kd", num_classes=5, student_classes=range(5)).settings()) == sorted(
            [*objective_of("kd").settings(), "student_classes"]
        )

    def test_copies(self) -> None:
        objective = objective_of("kd", num_classes=3, **PAIRED)
        batch = example()
        first = objective(*batch[:3]).total
        assert_close(copy.deepcopy(objective)(*batch[:3]).total, first)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"student_classes": [0, 1]}, ValueError, r"student_classes must have num_classes = 3 classes.*got 2"),
            ({"student_classes": [0, 1, 1]}, ValueError, "student_classes must hold every class once, got 1 twice"),
            ({"teacher_classes": [0, 1, -1]}, ValueError, "teacher_classes must be 0 or more, got -1"),
            ({"teacher_classes": [0, 1.5, 2]}, TypeError, "teacher_classes must be an int, got float"),
            ({"teacher_classes": "012"}, TypeError, "teacher_classes must be a sequence of ints or None, got str"),
        ],
    )
    def test_wrong_ones(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            objective_of("kd", num_classes=3, **options)

    def test_a_head_that_is_too_small(self) -> None:
        batch = example()
        with pytest.raises(ValueError, match=r"teacher.logits must have class 9 of teacher_classes, got 9 classes"):
            objective_of("kd", num_classes=3, student_classes=[0, 1, 2], teacher_classes=[0, 1, 9])(*batch[:3])
        with pytest.raises(ValueError, match=r"teacher.logits must have shape \(B, 3\)"):
            objective_of("kd", num_classes=3, student_classes=[0, 1, 2])(*batch[:3])


def masked(batch: Example, name: str) -> Example:
    """Masks two classes of some images in one network."""
    network = getattr(batch, name)
    logits = network.logits.detach().clone()
    logits[:4, [2, 5]] = -math.inf
    return batch._replace(**{name: network._replace(logits=logits.requires_grad_())})


def label(batch: Example) -> Tensor:
    """One that no mask takes away."""
    return torch.where((batch.target == 2) | (batch.target == 5), 0, batch.target)


class TestMasks:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("name", ["student", "teacher"])
    @pytest.mark.parametrize("method", EVERY_METHOD)
    def test_leave_everything_finite(self, method: str, name: str, backend: str) -> None:
        batch = masked(example(torch.float32), name)
        objective = objective_of(method, backend=backend, label_smoothing=0.1)
        out = objective(*batch[:2], label(batch), epoch=20, indices=batch.indices)
        assert all(term.isfinite() for term in out.components.values())
        grads = torch.autograd.grad(out.total, batch.leaves, allow_unused=True)
        assert all(grad.isfinite().all() for grad in grads if grad is not None)
        soft = torch.nn.functional.one_hot(label(batch), 9).float()
        assert objective(*batch[:2], soft, epoch=20, indices=batch.indices).total.isfinite()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("name", ["student", "teacher"])
    @pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
    def test_take_the_class_out_of_both_rows(self, base: str, name: str, backend: str) -> None:
        """The loss is the formula's without these classes, and no gradient reaches them."""
        batch = masked(example(), name)
        student, teacher = (network.logits for network in batch[:2])
        got = sdd_loss(
            student[:, :, None], teacher[:, :, None], label(batch), base=base, reduction="none", backend=backend
        )
        numbers = {"temperature": 4.0, "alpha": 1.0, "beta": 2.0, "gamma": 2.0}
        expected = []
        for b, y in enumerate(label(batch).tolist()):
            keep = [k for k in range(9) if b >= 4 or k not in (2, 5)]
            s, t = ([logits[b, k].item() for k in keep] for logits in (student, teacher))
            expected.append(formulas.ROWS[base](s, t, keep.index(y), **numbers))
        assert_close(got.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
        if name == "student":
            (gradient,) = torch.autograd.grad(got.sum(), student)
            assert not gradient[:4, [2, 5]].any()
            assert gradient[4:].all()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("base", ["kd", "dkd"])
    def test_count_in_no_z_score(self, base: str, backend: str) -> None:
        """Standardised logits are those of the classes that are left."""
        batch = masked(example(), "teacher")
        student, teacher = (network.logits.detach()[:, :, None] for network in batch[:2])
        options: dict[str, Any] = {"base": base, "standardize": True, "reduction": "none", "backend": backend}
        got = sdd_loss(student, teacher, label(batch), **options)
        for b, y in enumerate(label(batch).tolist()):
            keep = [k for k in range(9) if b >= 4 or k not in (2, 5)]
            one = slice(b, b + 1)
            rows = student[one, keep], teacher[one, keep], torch.tensor([keep.index(y)])
            assert_close(got[one], sdd_loss(*rows, **options), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("method", LOCAL)
    def test_reach_local_logits(self, method: str) -> None:
        """The base of SD-* and iCD leaves the class out of every region too."""
        batch = masked(example(), "teacher")
        name = method.replace("icd", "sd")
        loss = objective_of(method)(*batch[:2], label(batch), epoch=20).components[name]
        _, weight, bias = map_and_head(batch.teacher)
        with torch.no_grad():
            bias[[2, 5]] -= 1e4
        moved = objective_of(method)(*batch[:2], label(batch), epoch=20).components[name]
        assert weight.isfinite().all()
        whole = slice(0, 4)  # the images that are masked read nothing of these classes
        each = [
            objective_of(method, reduction="none")(*some[:2], label(batch), epoch=20).components[name][whole]
            for some in (batch, masked(example(), "teacher"))
        ]
        assert_close(*each)
        assert not torch.isclose(loss, moved)

    def test_a_class_that_no_image_has(self) -> None:
        batch = example(torch.float32)
        logits = batch.teacher.logits.detach().clone()
        logits[1] = -math.inf
        with pytest.raises(ValueError, match="leave every image a class, got -inf at all of them"):
            objective_of("kd")(batch.student, batch.teacher._replace(logits=logits), batch.target)

    def test_a_head_with_a_masked_class_is_no_head_for_icd(self) -> None:
        batch = example(torch.float32)
        _, weight, bias = map_and_head(batch.teacher)
        bias = bias.detach().clone()
        bias[3] = -math.inf
        logits = batch.teacher.logits.detach().clone()
        logits[:, 3] = -math.inf
        teacher = batch.teacher._replace(logits=logits, head=(weight, bias))
        target = torch.where(batch.target == 3, 0, batch.target)
        with pytest.raises(ValueError, match=r"teacher.head must have a finite bias for iCD.*teacher_classes"):
            objective_of("icd-kd")(batch.student, teacher, target)
        assert objective_of("sd-kd")(batch.student, teacher, target).total.isfinite()
