"""The exact class sum without shifts: at the ends of where it holds, for close rows, and where it must not be taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import add_emulated_backend_or_skip, run_as
from torch import Tensor

from icd_kernels import gram_kl
from icd_kernels.backends import cpp

TEMPERATURE = 4.0
OPTIONS: dict[str, Any] = {"scales": (1, 2), "gram": "class", "temperature": TEMPERATURE}


@pytest.fixture(
    params=[
        pytest.param(
            "cpp",
            marks=pytest.mark.skipif(
                cpp.CPP.missing is not None, reason=f"backend 'cpp' is missing: {cpp.CPP.missing}"
            ),
        ),
        pytest.param("emulated", marks=pytest.mark.thorough),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """The CPU's kernels, and the CUDA kernels' source (emulated.py)."""
    if request.param == "emulated":
        assert add_emulated_backend_or_skip() == request.param
        run_as(0, 3)
    return str(request.param)


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICD_KERNELS_CLASS_SUM", "exact")


def logits(classes: int, largest_exponent: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """(2, K, 5), whose largest z² / temperature is this."""
    generator = torch.Generator().manual_seed(seed + classes)
    z = torch.randn(2, classes, 5, generator=generator, dtype=torch.float64)
    size = (largest_exponent * TEMPERATURE) ** 0.5 / z.abs().amax(1, keepdim=True)
    return (z * size).to(dtype)


def outcome(student: Tensor, teacher: Tensor, backend: str) -> list[Tensor]:
    leaf = student.clone().requires_grad_()
    loss = gram_kl(leaf, teacher, backend=backend, **OPTIONS)
    return [loss.detach(), torch.autograd.grad(loss, leaf)[0]]


def check(student: Tensor, teacher: Tensor, backend: str) -> None:
    """No worse than eager PyTorch, but for a few roundings."""
    exact = outcome(student.double(), teacher.double(), "reference")
    ours, eager = (outcome(student, teacher, name) for name in (backend, "reference"))
    eps = torch.finfo(student.dtype).eps
    for got, plain, true in zip(ours, eager, exact, strict=True):
        assert got.isfinite().all()
        tolerance = 64 * eps * (1 + true.abs().max())
        assert (got - true).abs().max() <= 2 * (plain - true).abs().max() + tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", [0.5, 20.0, 59.9, 60.1, 200.0])
@pytest.mark.parametrize("classes", [15, 16, 17, 19, 63, 64, 65, 100, 200])
def test_every_remainder_of_strips_and_lanes(classes: int, exponent: float, dtype: torch.dtype, backend: str) -> None:
    check(logits(classes, exponent, dtype), logits(classes, exponent, dtype, seed=1), backend)


@pytest.mark.parametrize("classes", [1023, 1024, 1025])
def test_the_most_classes(classes: int, backend: str) -> None:
    check(logits(classes, 30.0, torch.float32), logits(classes, 30.0, torch.float32, seed=1), backend)


@pytest.mark.parametrize("apart", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("exponent", [2.0, 50.0])
def test_close_rows_keep_their_digits(exponent: float, apart: float, backend: str) -> None:
    """Student and teacher that nearly agree: the loss to a percent where eager float32 has lost it, and on the CPU the
    gradient too, to a hundred thousandth.
    """
    student = logits(100, exponent, torch.float32)
    teacher = student + apart * logits(100, 1.0, torch.float32, seed=1)
    true, gradient = outcome(student.double(), teacher.double(), "reference")
    got, of_backend = outcome(student, teacher, backend)
    assert abs(float(got / true) - 1) < 0.01
    if backend == "cpp":
        assert (of_backend - gradient).abs().max() < 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("classes", [17, 100, 200])
@pytest.mark.parametrize(("size", "apart"), [(0.3, 1.0), (0.5, 1.0), (0.7, 1.0), (1.0, 1.0), (2.0, 0.3), (3.0, 0.1)])
def test_small_divergences_on_both_sides_of_close(size: float, apart: float, classes: int, backend: str) -> None:
    """Mean row KLs from 5e-4 to 0.1: some are summed as they are, some once more as close rows."""
    generator = torch.Generator().manual_seed(classes)
    teacher, noise = (torch.randn(2, classes, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    student = (size * ((1 - apart**2) ** 0.5 * teacher + apart * noise)).float()
    teacher = (size * teacher).float()
    true = outcome(student.double(), teacher.double(), "reference")[0]
    losses = (outcome(student, teacher, name)[0].double() for name in (backend, "reference"))
    got, eager = (float((loss / true - 1).abs()) for loss in losses)
    assert got <= max(eager, 2e-6)


@pytest.mark.parametrize("exponent", [59.0, 61.0])
def test_one_class_above_all(exponent: float, backend: str) -> None:
    """One-hot logits: shares below the smallest number, next to exponents of e^60."""
    student, teacher = torch.zeros(2, 200, 5), torch.zeros(2, 200, 5)
    student[:, 3] = (exponent * TEMPERATURE) ** 0.5
    teacher[:, 7] = -((exponent * TEMPERATURE) ** 0.5)
    check(student, teacher, backend)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_not_a_number_stays(side: str, value: float, backend: str) -> None:
    both = {name: logits(50, 5.0, torch.float32, seed) for seed, name in enumerate(("student", "teacher"))}
    both[side][1, 20, 2] = value
    loss, _ = outcome(both["student"], both["teacher"], backend)
    assert loss.isnan()


def test_rounding_of_other_code_is_left_alone(backend: str) -> None:
    """Denormal results are cut to 0 inside the kernel and nowhere else."""
    tiny = torch.tensor([1e-30, 1e-20])
    before = tiny * 1e-10
    outcome(logits(64, 5.0, torch.float32), logits(64, 5.0, torch.float32, 1), backend)
    assert torch.equal(tiny * 1e-10, before)
    assert before[0] > 0
