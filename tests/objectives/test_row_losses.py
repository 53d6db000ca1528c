"""The fused operator of row losses against PyTorch's operations, loss and gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import sdd_loss
from icd_kernels.backends import cpp
from icd_kernels.operators import ROW_SCHEMA

pytestmark = pytest.mark.skipif(cpp.CPP.missing is not None, reason=f"backend 'cpp' is missing: {cpp.CPP.missing}")

BASES = ["kd", "dkd", "nkd"]
FACTORS = {"kd": [9.0, 0.0, 0.0, 0.0, 0.0], "dkd": [0.0, 9.0, 18.0, 0.0, 0.0], "nkd": [0.0, 0.0, 18.0, 18.0, 1.0]}


def rows(classes: int, regions: int, dtype: torch.dtype, size: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (4, K, N) whose classes lie apart in one network and together in the other."""
    generator = torch.Generator().manual_seed(classes + regions)
    student = size * torch.randn(4, regions, classes, generator=generator, dtype=torch.float64)
    teacher = size * torch.randn(4, classes, regions, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (4,), generator=generator)
    return student.to(dtype).transpose(1, 2), teacher.to(dtype), target


def both_ways(student: Tensor, teacher: Tensor, target: Tensor | None, **options: Any) -> list[list[Tensor]]:
    """Loss and gradient of either backend; every image has a gradient of its own size."""
    found = []
    for backend in ("cpp", "reference"):
        leaf = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        loss = sdd_loss(leaf, teacher, target, reduction="none", backend=backend, **options)
        upstream = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaf, upstream)])
    return found


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("classes", "regions"), [(2, 1), (3, 5), (17, 21), (200, 5), (1000, 1)])
@pytest.mark.parametrize("base", BASES)
class TestIsTheFormula:
    def test_in_float64(self, base: str, classes: int, regions: int, temperature: float) -> None:
        got, expected = both_ways(*rows(classes, regions, torch.float64), base=base, temperature=temperature)
        assert_close(got, expected, rtol=1e-11, atol=1e-12)

    def test_no_worse_than_eager_in_float32(self, base: str, classes: int, regions: int, temperature: float) -> None:
        options: dict[str, Any] = {"base": base, "temperature": temperature}
        got, eager = both_ways(*rows(classes, regions, torch.float32), **options)
        student, teacher, target = rows(classes, regions, torch.float32)
        exact = both_ways(student.double(), teacher.double(), target, **options)[1]
        for ours, theirs, true in zip(got, eager, exact, strict=True):
            tolerance = 4e-6 * (1 + true.abs().max())
            assert (ours - true).abs().max() <= (theirs - true).abs().max() + tolerance


@pytest.mark.parametrize("base", BASES)
class TestHardNumbers:
    @pytest.mark.parametrize("name", ["student", "teacher", "both"])
    def test_masked_classes(self, base: str, name: str) -> None:
        """Whatever is left: all classes but the first two, the true one alone, or all but the true one."""
        student, teacher, _ = rows(9, 5, torch.float64)
        target = torch.tensor([0, 4, 4, 8])
        for logits in (student, teacher):
            if name != "both" and logits is not (student if name == "student" else teacher):
                continue
            logits[0, 6:, 1:] = -math.inf
            logits[1, :4, 0] = -math.inf
            logits[1, 5:, 0] = -math.inf
            logits[2, 4, 2] = -math.inf
        got, expected = both_ways(student, teacher, target, base=base)
        assert all(value.isfinite().all() for value in got)
        assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert not got[1][0, 6:, 1:].any()
        assert not got[1][1, :, 0].any()

    @pytest.mark.parametrize("what", [math.nan, math.inf])
    def test_nan_stays(self, base: str, what: float) -> None:
        student, teacher, target = rows(9, 5, torch.float64)
        student[1, 3, 2] = what
        loss, gradient = both_ways(student, teacher, target, base=base)[0]
        assert loss.isnan().tolist() == [False, True, False, False]
        assert gradient[1, :, 2].isnan().any()
        assert gradient[[0, 2, 3]].isfinite().all()

    @pytest.mark.parametrize("size", [1e3, 1e4])
    def test_large_logits(self, base: str, size: float) -> None:
        got, expected = both_ways(*rows(50, 5, torch.float32, size), base=base)
        assert_close(got, expected, rtol=2e-5, atol=2e-5 * size)


@pytest.mark.parametrize("base", BASES)
def test_gradcheck_and_no_second_derivative(base: str) -> None:
    student, teacher, target = rows(5, 5, torch.float64)
    student = student.clone().requires_grad_()

    def loss(leaf: Tensor) -> Tensor:
        return sdd_loss(leaf, teacher, target, base=base, backend="cpp", reduction="none")

    assert torch.autograd.gradcheck(loss, (student,))
    (gradient,) = torch.autograd.grad(loss(student).sum(), student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(loss, (student.detach(),), (torch.ones_like(student),))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(base: str, keep: bool) -> None:
    student, teacher, target = rows(5, 5, torch.float32)
    operator = torch.ops.icd_kernels.row_losses.default
    torch.library.opcheck(operator, (student, teacher, target, FACTORS[base], 3.0, 2.0, keep))
    assert str(operator._schema) == str(torch._C.parse_schema(f"icd_kernels::{ROW_SCHEMA}"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": torch.ones(4, 5, 3)}, ValueError, r"\(B, K, N\), got \(4, 5, 5\) and \(4, 5, 3\)"),
        ({"teacher": torch.ones(4, 5, 5).double()}, ValueError, "both be float32 or float64, got Float and Double"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target must have shape \(4,\), got \(3,\)"),
        ({"target": torch.full((4,), 5)}, IndexError, "classes from 0 to 4, got 5"),
        ({"factors": [1.0]}, ValueError, "factors must have 5 items, got 1"),
    ],
)
def test_the_operator_checks(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    student, teacher, target = rows(5, 5, torch.float32)
    arguments = {"student": student, "teacher": teacher, "target": target, "factors": FACTORS["kd"], **changes}
    with pytest.raises(error, match=message):
        torch.ops.icd_kernels.row_losses(*arguments.values(), 3.0, 2.0, True)
