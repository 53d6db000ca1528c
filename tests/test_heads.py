"""Heads that are not linear: local logits are the head, whatever it is, of the mean of a region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_BACKEND, GRAMS, feature_map
from torch import Tensor, nn
from torch.testing import assert_close

from icd_kernels import ICDLoss, NetworkOutput, gram_kl, make_objective, region_features
from icd_kernels.objectives import METHODS

CHANNELS, CLASSES, BATCH = 6, 5, 4
PAIRINGS: list[dict[str, Any]] = [
    {"num_classes": CLASSES},
    {"num_classes": 3, "student_classes": [0, 2, 4], "teacher_classes": [4, 2, 1]},
]
LOCAL = [method for method in METHODS if "-" in method]


class Cosine(nn.Linear):
    """A subclass of nn.Linear whose forward is its own: its weight and bias say nothing of it."""

    def forward(self, input: Tensor) -> Tensor:
        return 5 * F.linear(F.normalize(input, dim=1), F.normalize(self.weight, dim=1))


HEADS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "norm": lambda: nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CLASSES)),
    "hidden": lambda: nn.Sequential(nn.Linear(CHANNELS, 9), nn.Hardswish(), nn.Dropout(0.0), nn.Linear(9, CLASSES)),
    "neck": lambda: nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, CLASSES)).eval(),
    "cosine": lambda: Cosine(CHANNELS, CLASSES),
    "function": lambda: lambda rows: torch.cat((rows[:, :3].square(), rows[:, 3:5].sin()), 1),
}


def made(name: str) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    head = HEADS[name]()
    return head.double() if isinstance(head, nn.Module) else head


def maps() -> tuple[Tensor, Tensor]:
    student = feature_map((BATCH, CHANNELS, 7, 6)).requires_grad_()
    return student, feature_map((BATCH, CHANNELS, 8, 8), seed=1)


def expected_logits(features: Tensor, head: Callable[[Tensor], Tensor], scales: tuple[int, ...]) -> Tensor:
    """Region by region."""
    rows = region_features(features, scales=scales, backend="reference")
    return torch.stack([head(row) for row in rows.unbind(1)], 2)


def leaves_of(head: Any, features: Tensor) -> list[Tensor]:
    return [features, *(head.parameters() if isinstance(head, nn.Module) else ())]


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("name", HEADS)
def test_the_loss_is_that_of_the_heads_local_logits(name: str, backend: str, gram: str) -> None:
    head, other = made(name), nn.Linear(CHANNELS, CLASSES).double()
    student, teacher = maps()
    options: dict[str, Any] = {"gram": gram, "normalize": "l2"}
    loss = ICDLoss(backend=backend, weight=2.0, **options)
    got = loss(student, head, teacher, other)
    logits = (expected_logits(x, h, (1, 2, 4)) for x, h in ((student, head), (teacher, other)))
    expected = 2.0 * gram_kl(*logits, backend="reference", **options)
    assert_close(got, expected)
    leaves = leaves_of(head, student)
    assert_close(*(torch.autograd.grad(x, leaves, allow_unused=True) for x in (got, expected)))
    constant = student.detach()
    assert_close(loss(teacher, other, constant, head), loss(teacher, lambda r: other(r), constant, head))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("method", LOCAL)
def test_objectives_take_them(method: str, backend: str) -> None:
    """A linear head as a function gives what it gives as itself; so do pairs of classes."""
    student, teacher = maps()
    heads = [nn.Linear(CHANNELS, CLASSES).double() for _ in range(2)]
    target = torch.tensor([0, 4, 4, 2])
    results = []
    for is_function in (False, True):
        outputs = []
        for features, head in zip((student, teacher), heads, strict=True):
            logits = head(features.mean((2, 3)))
            outputs.append(NetworkOutput(logits, features, head.forward if is_function else head))
        for options in PAIRINGS:
            total = make_objective(method, backend=backend, **options)(*outputs, target, epoch=20).total
            results.append([total, *torch.autograd.grad(total, [student, *heads[0].parameters()], retain_graph=True)])
    assert_close(results[:2], results[2:])


@pytest.mark.parametrize("name", HEADS)
def test_gradcheck(name: str) -> None:
    head, (student, teacher) = made(name), maps()
    loss = ICDLoss(scales=(1, 2), backend="auto")
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, head, teacher, head), (student,), fast_mode=True)


def test_the_teachers_head_gets_no_gradient() -> None:
    student, teacher = maps()
    head, other = made("norm"), made("hidden")
    assert isinstance(other, nn.Module)
    ICDLoss()(student, head, teacher.requires_grad_(), other).backward()
    assert teacher.grad is None
    assert all(parameter.grad is None for parameter in other.parameters())


def test_a_subclass_of_linear_is_called() -> None:
    """Not read by its weight, which would be another model's number."""
    student, teacher = maps()
    head = made("cosine")
    assert isinstance(head, Cosine)
    by_weight = ICDLoss()(student, (head.weight, head.bias), teacher, head)
    assert not torch.isclose(ICDLoss()(student, head, teacher, head), by_weight)


def test_batch_statistics_are_refused() -> None:
    student, teacher = maps()
    head = nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, CLASSES)).double()
    with pytest.raises(ValueError, match=r"student_head must not have a BatchNorm in training mode.*got '0'"):
        ICDLoss()(student, head, teacher, head)
    assert head[0].num_batches_tracked == 0
    head.eval()
    assert ICDLoss()(student, head, teacher, head).isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    """A head of halves is given halves, the Grams are float32."""
    student, teacher = (x.detach().to(dtype) for x in maps())
    head = nn.Sequential(nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CLASSES)).to(dtype)
    loss = ICDLoss()(student.requires_grad_(), head, teacher, head)
    assert loss.dtype == torch.float32
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (lambda rows: rows.sum(), ValueError, r"student_head must return logits \(84, K\) for \(84, 6\), got \(\)"),
        (lambda rows: [rows], ValueError, r"student_head must return logits \(84, K\) for \(84, 6\), got list"),
        (lambda rows: rows, ValueError, "teacher_logits must have the number of classes"),
        ("fc", TypeError, r"student_head must be an nn.Linear.*got str"),
        (nn.Conv2d(CHANNELS, CLASSES, 3), ValueError, "student_head must be a 1 x 1 convolution"),
    ],
)
def test_wrong_heads(head: Any, error: type[Exception], message: str) -> None:
    student, teacher = maps()
    other: Any = nn.Sequential(nn.Linear(CHANNELS, CLASSES)).double()
    with pytest.raises(error, match=message):
        ICDLoss()(student, head, teacher, other)


def test_a_head_of_other_classes_than_the_logits() -> None:
    student, teacher = maps()
    head = nn.Sequential(nn.Linear(CHANNELS, 7)).double()
    linear = nn.Linear(CHANNELS, CLASSES).double()
    logits = torch.randn(BATCH, CLASSES)
    outputs = (NetworkOutput(logits, student, head), NetworkOutput(logits, teacher, linear))
    with pytest.raises(ValueError, match=r"student.head must return the 5 classes of student.logits, got 7"):
        make_objective("sd-kd", num_classes=CLASSES)(*outputs, torch.zeros(BATCH, dtype=torch.int64))
