"""The CUDA backend's class form linear in K: its own source run on the CPU (emulated.py), against the definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulated import SCHEDULES, add_emulated_backend_or_skip, run_as
from test_linear_class import KINDS, SWITCH, TOLERANCE, errors, gradient_terms, logits, loss_and_gradient
from torch import Tensor

from icd_kernels import gram_kl
from icd_kernels.backends import linear_reference

pytestmark = [pytest.mark.usefixtures("poisoned_memory", "_built"), pytest.mark.thorough]

BACKEND = "emulated"
SIZES = ((2, "none"), (150, "none"), (150, "l2"), (150, "zscore"), (700, "none"))


@pytest.fixture(scope="module")
def _built() -> None:
    assert add_emulated_backend_or_skip() == BACKEND
    run_as(0, 3)


def assert_right(student: Tensor, teacher: Tensor, normalize: str = "none", temperature: float = 4.0) -> None:
    """float32 no worse than eager plus a tolerance, float64 to the rounding of its terms."""
    options: dict[str, Any] = {"normalize": normalize, "temperature": temperature}
    classes = student.shape[1]
    exact = loss_and_gradient(student, teacher, torch.float64, backend="reference", **options)
    eager = loss_and_gradient(student, teacher, torch.float32, backend="reference", **options)
    single = loss_and_gradient(student, teacher, torch.float32, backend=BACKEND, **options)
    double = loss_and_gradient(student, teacher, torch.float64, backend=BACKEND, **options)
    terms = gradient_terms(student, normalize, temperature)
    floors = 1e-6 * classes, terms
    for measured, allowed in zip(errors(single, exact, *floors), errors(eager, exact, *floors), strict=True):
        assert measured <= allowed + TOLERANCE
    assert max(errors(double, exact, 1e-2 * classes, terms)) < 2e-11


@pytest.mark.parametrize("form", ["automatic", "linear"])
@pytest.mark.parametrize(("classes", "normalize"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_eager(
    monkeypatch: pytest.MonkeyPatch, kind: str, classes: int, normalize: str, form: str
) -> None:
    if kind == "nodes hit" and classes == 2:
        pytest.skip("two classes are the ends alone: there is no node between them to hit")
    if kind == "constant" and normalize == "zscore":
        pytest.skip("zscore of equal logits divides rounding noise by 1e-12: there is no right answer to compare")
    monkeypatch.setenv(SWITCH, form)
    assert_right(*logits(kind, classes), normalize)


@pytest.mark.parametrize("kind", ["one-hot", "close"])
def test_thousands_of_classes(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    assert_right(*logits(kind, 3000))


def test_many_classes() -> None:
    student, teacher = logits("gaussian", 21841)
    single = loss_and_gradient(student, teacher, torch.float32, backend=BACKEND)
    loss, gradient = linear_reference.class_cell(student.flatten(), teacher.flatten(), 4.0)
    assert max(errors(single, (loss, gradient.view_as(student)), 1.0)) < TOLERANCE


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("kind", ["gaussian", "one point on a side"])
def test_temperatures(monkeypatch: pytest.MonkeyPatch, temperature: float, kind: str) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    assert_right(*logits(kind, 300), temperature=temperature)


@pytest.mark.parametrize("span", [0.0, 1e-6, 1e-2, 1.0, 30.0, 1e3, 4e3, 1e4])
def test_spans(monkeypatch: pytest.MonkeyPatch, span: float) -> None:
    """Of R = (x_max - x_min)(y_max - y_min) with τ = 1, on either sign; the widest go to the exact sum."""
    monkeypatch.setenv(SWITCH, "linear")
    student, teacher = (part.clamp(-2.5, 2.5) / 5 * math.sqrt(2 * span) for part in logits("gaussian", 200))
    assert_right(student.float().double(), teacher.float().double(), temperature=1.0)


def test_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 12, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def compute(leaf: Tensor) -> Tensor:
        return gram_kl(leaf, teacher, scales=(2,), normalize="zscore", reduction="none", backend=BACKEND)

    assert torch.autograd.gradcheck(compute, student.requires_grad_())


@pytest.mark.parametrize("kind", ["gaussian", "close", "one point on a side"])
def test_every_schedule_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """More cells than blocks, so that scratch is used again: a read that no barrier orders differs between some two."""
    monkeypatch.setenv(SWITCH, "linear")
    cells = [logits(kind, 90, seed) for seed in range(21)]
    student, teacher = (torch.cat(parts, dim=2) for parts in zip(*cells, strict=True))
    results = []
    for processors, schedule in ((1, SCHEDULES["in order"]), *((3, s) for s in (*SCHEDULES.values(), 2, 3))):
        run_as(schedule, processors)
        leaf = student.float().requires_grad_()
        loss = gram_kl(leaf, teacher.float(), scale_weights=(1, 0, 2), backend=BACKEND)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    run_as(0, 3)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    leaf = student.float().double().requires_grad_()
    exact = gram_kl(leaf, teacher.float().double(), scale_weights=(1, 0, 2), backend="reference")
    (expected,) = torch.autograd.grad(exact, leaf)
    loss, gradient = (part.double() for part in results[0])
    assert max(errors((loss, gradient), (exact.detach(), expected), 1e-4)) < TOLERANCE


@pytest.mark.parametrize("kind", ["gaussian", "close"])
def test_the_linear_sum_is_really_taken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    student, teacher = logits(kind, 1000)
    results = {}
    for form in ("exact", "linear", "automatic"):
        monkeypatch.setenv(SWITCH, form)
        results[form] = loss_and_gradient(student, teacher, torch.float32, backend=BACKEND)[1]
    assert torch.equal(results["automatic"], results["linear"])
    assert not torch.equal(results["automatic"], results["exact"])


def test_too_wide_a_span_is_summed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = (800 * part for part in logits("gaussian", 60))
    results = []
    for form in ("exact", "linear"):
        monkeypatch.setenv(SWITCH, form)
        results.append(loss_and_gradient(student, teacher, torch.float32, backend=BACKEND))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 7])
def test_a_bad_logit_is_never_hidden(monkeypatch: pytest.MonkeyPatch, bad: float, place: int) -> None:
    monkeypatch.setenv(SWITCH, "linear")
    for side in range(2):
        pair = logits("gaussian", 300)
        pair[side][0, place, 0] = bad
        loss, gradient = loss_and_gradient(*pair, torch.float32, backend=BACKEND)
        assert loss.isnan()
        assert gradient.isnan().any()


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
@pytest.mark.parametrize("row_kl", [1e-3, 1e-6, 1e-8])
def test_small_divergences_keep_their_digits(monkeypatch: pytest.MonkeyPatch, gram: str, row_kl: float) -> None:
    """The exact rows in float32, logits of order 1: within 1 % down to a row KL of 1e-8."""
    monkeypatch.setenv(SWITCH, "exact")
    generator = torch.Generator().manual_seed(1)
    teacher, noise = (torch.randn(6, 40, 16, generator=generator) for _ in range(2))
    options: dict[str, Any] = {"gram": gram, "normalize": "none" if gram == "class" else "l2"}

    def mean_row_kl(size: float, dtype: torch.dtype, backend: str) -> float:
        student = (teacher.double() + size * noise.double()).float()
        loss = gram_kl(student.to(dtype), teacher.to(dtype), scales=(4,), backend=backend, **options)
        return float(loss) / {"class": 40, "spatial": 16, "sample": 1}[gram]

    size = math.sqrt(row_kl / mean_row_kl(1e-3, torch.float64, "reference")) * 1e-3
    exact, measured = mean_row_kl(size, torch.float64, "reference"), mean_row_kl(size, torch.float32, BACKEND)
    assert 0.2 * row_kl < exact < 5 * row_kl
    assert measured == pytest.approx(exact, rel=1e-2)
