"""The CUDA kernels' own source, run on the CPU (emulated.py), judged like every other backend.

Each case is run under a drawn schedule of its threads and a drawn number of multiprocessors, which decides how products
are split and how many blocks wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equal_pixels
import pytest
import torch
from cases import CASES_RUN, STUDENT, Case, Limits, Network, case_strategy, loss_of, option_grid
from emulated import SCHEDULES, add_emulated_backend_or_skip, launches, run_as
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem
from torch import Tensor
from torch.autograd import grad, gradcheck

from icd_kernels import gram_kl, region_features, region_logits

pytestmark = [pytest.mark.usefixtures("poisoned_memory", "_built"), pytest.mark.thorough]

EMULATED = "emulated"
SCHEDULE = st.integers(-2, 50)
PROCESSORS = st.sampled_from((1, 3, 20))
LIMITS = Limits(batch=4, channels=20, side=9, classes=20, scale=5)


@pytest.fixture(scope="module")
def _built() -> None:
    assert add_emulated_backend_or_skip() == EMULATED


@pytest.mark.parametrize("problem", [icd_loss_problem, region_logits_problem, gram_kl_problem])
@settings(max_examples=60)
@given(case=case_strategy(LIMITS), schedule=SCHEDULE, processors=PROCESSORS)
def test_drawn_cases(problem: Callable[[Case], Problem], case: Case, schedule: int, processors: int) -> None:
    run_as(schedule, processors)
    CASES_RUN[f"{problem.__name__.removesuffix('_problem')} by {EMULATED}"] += 1
    assert_no_worse_than_eager(problem(case), EMULATED)


@pytest.mark.parametrize("options", option_grid(pyramid="adaptive"))
def test_finite_differences(options: dict[str, Any]) -> None:
    run_as(0, 3)
    student = Network(channels=2, height=3, width=4)
    tensors = Case(batch=2, classes=3, student=student, seed=3).tensors().requiring_grad(*STUDENT)

    def compute(*student: Tensor) -> Tensor:
        return loss_of(tensors._replace(**dict(zip(STUDENT, student, strict=True))), EMULATED, scales=(2, 1), **options)

    assert gradcheck(compute, tensors.student)


SIZES = {
    "more classes than a chunk": Case(batch=1, classes=530, options={"scales": (1,)}),
    "more regions than a tile": Case(batch=2, options={"gram": "spatial", "scales": (9, 1, 5), "normalize": "zscore"}),
    "more images than a tile": Case(batch=70, options={"gram": "sample", "scales": (1, 2), "reduction": "none"}),
    "a tile and one image": Case(batch=17, options={"gram": "sample", "scales": (1,), "normalize": "l2"}),
    "a deep product": Case(student=Network(700, 2, 2), teacher=Network(513, 1, 1), options={"scales": (2, 1)}),
    "planes larger than shared memory": Case(batch=1, student=Network(2, 100, 90), options={"scales": (3, 1)}),
    "vectors of channels": Case(student=Network(264, 5, 4, "channels_last"), teacher=Network(136, 4, 4, "token_grid")),
    "many products' tiles": Case(batch=9, classes=140, student=Network(150), options={"gram": "spatial"}),
    "a scale larger than the map": Case(student=Network(3, 2, 1), options={"scales": (7, 2)}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", sorted(SIZES))
def test_sizes(size: str, dtype: torch.dtype) -> None:
    run_as(7, 1 if size == "many products' tiles" else 20)
    case = SIZES[size]
    networks = (
        replace(network, dtype=dtype, weight_dtype=dtype, bias_dtype=dtype) for network in (case.student, case.teacher)
    )
    student, teacher = networks
    assert_no_worse_than_eager(icd_loss_problem(replace(case, student=student, teacher=teacher)), EMULATED)


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_schedule_gives_the_same_bits(gram: str, reduction: str) -> None:
    """A read that a barrier should have ordered, and is not ordered, differs between some two of these."""
    network = Network(40, 6, 6, dtype=torch.float32, weight_dtype=torch.float32, bias_dtype=torch.float32)
    options = {"gram": gram, "normalize": "l2", "reduction": reduction}
    case = Case(batch=18, classes=9, student=network, teacher=replace(network, channels=300, layout="channels_last"))
    results = []
    for schedule in (*SCHEDULES.values(), 2, 3):
        run_as(schedule, 3)
        tensors = case.tensors().requiring_grad(*STUDENT)
        loss = loss_of(tensors, EMULATED, **options)
        results.append([loss.detach(), *grad(loss.sum(), tensors.student)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def counted(compute: Callable[[], Any]) -> tuple[int, int]:
    launches()
    compute()
    return launches()


class TestLaunches:
    """Kernels launched and counters cleared (a memory operation, not a kernel)."""

    @pytest.mark.parametrize("options", option_grid())
    def test_icd_loss(self, options: dict[str, Any]) -> None:
        tensors = Case(classes=7).tensors().requiring_grad(*STUDENT)
        losses: list[Tensor] = []
        assert counted(lambda: losses.append(loss_of(tensors, EMULATED, **options))) == (3, 0)
        waits = options["gram"] == "sample" and options["reduction"] == "none"
        assert counted(lambda: losses[0].sum().backward()) == ((3, 1) if waits else (2, 0))

    @pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
    def test_region_features(self, pyramid: str) -> None:
        features = Case().tensors().student_features.requires_grad_()
        cells: list[Tensor] = []
        options: dict[str, Any] = {"scales": (1, 2, 3), "pyramid": pyramid}
        assert counted(lambda: cells.append(region_features(features, backend=EMULATED, **options))) == (1, 0)
        expected = region_features(features, backend="reference", **options)
        torch.testing.assert_close(cells[0], expected)
        found: list[Tensor] = []
        assert counted(lambda: found.extend(grad(cells[0].square().sum(), features))) == (1, 0)
        torch.testing.assert_close(found[0], grad(expected.square().sum(), features)[0])

    def test_region_logits(self) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        logits: list[Tensor] = []
        assert counted(lambda: logits.append(region_logits(*tensors[:3], backend=EMULATED))) == (3, 0)
        assert counted(lambda: logits[0].square().sum().backward()) == (3, 0)

    @pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_gram_kl(self, gram: str, reduction: str) -> None:
        student, teacher = Case().local_logits()
        student.requires_grad_()
        losses: list[Tensor] = []
        options: dict[str, Any] = {"gram": gram, "reduction": reduction}
        assert counted(lambda: losses.append(gram_kl(student, teacher, backend=EMULATED, **options))) == (1, 1)
        waits = gram == "sample" and reduction == "none"
        assert counted(lambda: losses[0].sum().backward()) == ((1, 1) if waits else (1, 0))


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["student_features", "teacher_features", "student_weight"])
def test_not_a_number_comes_out(gram: str, value: float, side: str) -> None:
    tensors = Case().tensors()
    getattr(tensors, side)[0, 0] = value
    loss = loss_of(tensors, EMULATED, gram=gram, reduction="none")
    assert not loss[0].isfinite()


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
def test_no_images(gram: str) -> None:
    tensors = Case(batch=2).tensors()
    tensors = tensors._replace(
        student_features=tensors.student_features[:0], teacher_features=tensors.teacher_features[:0]
    )
    tensors = tensors.requiring_grad(*STUDENT)
    assert loss_of(tensors, EMULATED, gram=gram).isnan()
    assert loss_of(tensors, EMULATED, gram=gram, reduction="none").shape == (0,)
    total = loss_of(tensors, EMULATED, gram=gram, reduction="sum")
    assert total == 0
    features, weight, bias = grad(total, tensors.student)
    assert features.shape == tensors.student_features.shape
    assert not weight.any()
    assert not bias.any()


def test_more_scales_than_fit_in_a_kernels_arguments() -> None:
    with pytest.raises(ValueError, match="at most 128 scales, got 129"):
        loss_of(Case().tensors(), EMULATED, scales=(1,) * 129)


@pytest.mark.parametrize("layout", equal_pixels.LAYOUTS)
@pytest.mark.parametrize("sides", equal_pixels.SIDES)
def test_equal_pixels_keep_their_value(sides: tuple[int, int], layout: str) -> None:
    run_as(0, 3)
    equal_pixels.assert_no_drift(EMULATED, sides, layout)
