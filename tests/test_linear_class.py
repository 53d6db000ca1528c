"""Class form linear in K: the method by itself, and the compiled backends' use of it, against the exact definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from icd_kernels import available_backends, gram_kl
from icd_kernels.backends import linear_reference

SWITCH = "ICD_KERNELS_CLASS_SUM"
LINEAR_BACKENDS = [name for name in available_backends() if name == "cpp"]
TOLERANCE = 4e-6
"""Of the loss and of the gradient's largest element: what float32 may err beyond eager PyTorch's own error."""


def logits(kind: str, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Student and teacher logits (1, K, 1) that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed + classes)

    def normal() -> Tensor:
        return torch.randn(classes, generator=generator)

    student, teacher = normal(), normal()
    first, half = torch.arange(classes) == 0, torch.arange(classes) % 2 == 0
    drawn: dict[str, Any] = {
        "gaussian": lambda: (student, teacher),
        "wide": lambda: (5 * student, 5 * teacher),
        "peaked": lambda: (student + 15 * first, teacher + 15 * first),
        "one-hot": lambda: (20.0 * first, 18.0 * first.roll(1)),
        "two-valued": lambda: (torch.where(half, 2.0, -3.0), torch.where(half.roll(1), 1.0, -1.0)),
        "heavy-tailed": lambda: (student / normal().abs().clamp_min(0.05), teacher / normal().abs().clamp_min(0.05)),
        "all positive": lambda: (student.abs() + 1, teacher.abs() + 2),
        "all negative": lambda: (-student.abs() - 1, -teacher.abs() - 2),
        "one point on a side": lambda: (student.abs() - 3 * first, teacher.abs() - 4 * first),
        "constant": lambda: (torch.full_like(student, 2.0), torch.full_like(teacher, -1.5)),
        "zero": lambda: (torch.zeros_like(student), teacher),
        "nodes hit": lambda: (_node_values(classes), _node_values(classes).flip(0)),
        "close": lambda: (3 * teacher + 1e-3 * student, 3 * teacher),
        "equal": lambda: (3 * teacher, 3 * teacher),
        "span 1e4": lambda: (60 * student.clamp(-2, 2), 60 * teacher.clamp(-2, 2)),
    }
    return tuple(part.float().double().view(1, classes, 1) for part in drawn[kind]())


def _node_values(classes: int) -> Tensor:
    """The Chebyshev nodes of [-2, 2] and its ends."""
    ends = torch.tensor([-2.0, 2.0])
    nodes = linear_reference.chebyshev_points(classes - 2, ends[0].double(), ends[1].double())
    return torch.cat([ends, nodes.float()])


KINDS = (
    "gaussian", "wide", "peaked", "one-hot", "two-valued", "heavy-tailed", "all positive", "all negative",
    "one point on a side", "constant", "zero", "nodes hit", "close", "equal", "span 1e4",
)  # fmt: skip


def loss_and_gradient(student: Tensor, teacher: Tensor, dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = student.to(dtype).requires_grad_()
    loss = gram_kl(leaf, teacher.to(dtype), scales=(1,), **options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach().double(), gradient.double()


def errors(
    result: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], loss_floor: float, gradient_floor: float = 1e-30
) -> tuple[float, float]:
    """Of the loss and of the gradient's largest element, relative where these are above a floor."""
    loss = abs(result[0] - exact[0]) / exact[0].abs().clamp_min(loss_floor)
    gradient = (result[1] - exact[1]).abs().max() / exact[1].abs().max().clamp_min(gradient_floor)
    return float(loss.detach()), float(gradient.detach())


def gradient_terms(student: Tensor, normalize: str, temperature: float = 4.0) -> float:
    """The size of the terms z/τ that cancel in a gradient, after the normalisation's derivative."""
    student = student.detach()
    centred = student - student.mean() if normalize == "zscore" else student
    norm = centred.norm() if normalize == "l2" else centred.std(correction=0)
    divisor = 1.0 if normalize == "none" else max(float(norm), 1e-12)
    return max(float(centred.abs().max()) / divisor / temperature / divisor, 1e-30)


@pytest.mark.parametrize("error", [1e-6, 1e-10, 1e-14])
@pytest.mark.parametrize("span", [0.0, 0.3, 1.0, 10.0, 100.0, 1e3, 1e4])
def test_the_bound_on_the_nodes_holds(span: float, error: float) -> None:
    count = linear_reference.chebyshev_nodes(span, error)
    low, high = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    points = torch.linspace(0, 1, 2001, dtype=torch.float64)
    nodes = linear_reference.chebyshev_points(count, low, high)
    interpolated = linear_reference.interpolate(torch.exp(-span * nodes), points, low, high)
    rounding = 1e-13 + 1e-16 * span
    assert float((interpolated - torch.exp(-span * points)).abs().max()) <= error + rounding


def test_the_nodes_grow_like_the_root_of_the_span() -> None:
    few, many = (linear_reference.chebyshev_nodes(span, 1e-8) for span in (100.0, 10000.0))
    assert 5 < many / few < 12
    assert linear_reference.chebyshev_nodes(math.nan, 1e-8) == 0
    assert linear_reference.chebyshev_nodes(1e7, 1e-8) == 0


@pytest.mark.parametrize("classes", [3, 40, 300])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "span 1e4"])
def test_the_method_equals_the_definition(kind: str, classes: int) -> None:
    student, teacher = logits(kind, classes)
    exact = loss_and_gradient(student, teacher, torch.float64, backend="reference")
    loss, gradient = linear_reference.class_cell(student.flatten(), teacher.flatten(), 4.0)
    result = loss, gradient.view_as(exact[1])
    assert max(errors(result, exact, 1e-2 * classes, gradient_terms(student, "none"))) < 1e-11


def test_the_methods_gradient_is_that_of_its_loss() -> None:
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
            loss, gradient = linear_reference.class_cell(student, teacher, 2.0)
            ctx.save_for_backward(gradient)
            return loss

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
            return upstream * ctx.saved_tensors[0], None

    student, teacher = (part.flatten() for part in logits("gaussian", 20))
    assert torch.autograd.gradcheck(Linear.apply, (student.requires_grad_(), teacher))


@pytest.mark.skipif(not LINEAR_BACKENDS, reason="no compiled backend is built: it holds the linear sums")
@pytest.mark.parametrize("backend", LINEAR_BACKENDS)
class TestBackends:
    @pytest.mark.parametrize("form", ["automatic", "linear", "exact"])
    @pytest.mark.parametrize("normalize", ["none", "l2", "zscore"])
    @pytest.mark.parametrize("classes", [2, 150, 700])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_worse_than_eager(
        self, monkeypatch: pytest.MonkeyPatch, backend: str, kind: str, classes: int, normalize: str, form: str
    ) -> None:
        if kind == "nodes hit" and classes == 2:
            pytest.skip("two classes are the ends alone: there is no node between them to hit")
        if kind == "constant" and normalize == "zscore":
            pytest.skip("zscore of equal logits divides rounding noise by 1e-12: there is no right answer to compare")
        monkeypatch.setenv(SWITCH, form)
        student, teacher = logits(kind, classes)
        exact = loss_and_gradient(student, teacher, torch.float64, normalize=normalize, backend="reference")
        eager = loss_and_gradient(student, teacher, torch.float32, normalize=normalize, backend="reference")
        single = loss_and_gradient(student, teacher, torch.float32, normalize=normalize, backend=backend)
        double = loss_and_gradient(student, teacher, torch.float64, normalize=normalize, backend=backend)
        floors = 1e-6 * classes, gradient_terms(student, normalize)
        for measured, allowed in zip(errors(single, exact, *floors), errors(eager, exact, *floors), strict=True):
            assert measured <= allowed + TOLERANCE
        assert max(errors(double, exact, 1e-2 * classes, floors[1])) < 1e-10

    @pytest.mark.parametrize("form", ["automatic", "linear", "exact"])
    @pytest.mark.parametrize("normalize", ["none", "zscore"])
    @pytest.mark.parametrize("kind", ["one-hot", "two-valued", "heavy-tailed"])
    def test_long_sums_of_equal_terms(
        self, monkeypatch: pytest.MonkeyPatch, backend: str, kind: str, normalize: str, form: str
    ) -> None:
        """These round the same way every time, the more often the fewer lanes an instruction set has."""
        self.test_no_worse_than_eager(monkeypatch, backend, kind, 3000, normalize, form)

    @pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
    def test_temperatures(self, monkeypatch: pytest.MonkeyPatch, backend: str, temperature: float) -> None:
        monkeypatch.setenv(SWITCH, "linear")
        student, teacher = logits("gaussian", 300)
        exact = loss_and_gradient(student, teacher, torch.float64, temperature=temperature, backend="reference")
        double = loss_and_gradient(student, teacher, torch.float64, temperature=temperature, backend=backend)
        assert max(errors(double, exact, 1e-6)) < 1e-10

    def test_many_classes(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        student, teacher = logits("gaussian", 21841)
        monkeypatch.setenv(SWITCH, "automatic")
        single = loss_and_gradient(student, teacher, torch.float32, backend=backend)
        expected = linear_reference.class_cell(student.flatten(), teacher.flatten(), 4.0)
        assert max(errors(single, (expected[0], expected[1].view_as(single[1])), 1.0)) < TOLERANCE

    def test_the_linear_sum_is_really_taken(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        student, teacher = logits("gaussian", 700)
        results = {}
        for form in ("exact", "linear", "automatic"):
            monkeypatch.setenv(SWITCH, form)
            results[form] = loss_and_gradient(student, teacher, torch.float32, backend=backend)[1]
        assert torch.equal(results["automatic"], results["linear"])
        assert not torch.equal(results["automatic"], results["exact"])

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_bad_logit_is_never_hidden(self, monkeypatch: pytest.MonkeyPatch, backend: str, bad: float) -> None:
        monkeypatch.setenv(SWITCH, "linear")
        student, teacher = logits("gaussian", 300)
        for spoiled in (student, teacher):
            kept = spoiled[0, 7, 0].clone()
            spoiled[0, 7, 0] = bad
            loss, gradient = loss_and_gradient(student, teacher, torch.float32, backend=backend)
            assert loss.isnan()
            assert gradient.isnan().any()
            spoiled[0, 7, 0] = kept
