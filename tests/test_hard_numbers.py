"""Numbers and sizes at the edges: huge, tiny, equal, missing; one of everything; none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import COMPILED, EVERY_BACKEND, GRAMS, PYRAMIDS, STUDENT, Case, Network, Tensors, loss_of
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem
from torch import Tensor
from torch.autograd import grad

from icd_kernels import gram_kl
from icd_kernels.options import NORMALIZATIONS

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float64, torch.float32]


def of_logits(student: Tensor, teacher: Tensor, **options: Any) -> Problem:
    """gram_kl of these very logits (B, K, N), with what the judge needs to know beside them."""
    case = Case(batch=student.shape[0], classes=student.shape[1], options=options)
    return replace(gram_kl_problem(case), inputs=(student, teacher))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_dominates(seed: int) -> Tensor:
    logits = normal(2, 9, 21, seed=seed)
    logits[:, 3 + seed] = 300.0
    return logits


LOGITS: dict[str, Callable[[int], Tensor]] = {
    "1e4": lambda seed: 1e4 * normal(2, 9, 21, seed=seed),
    "whole multiples of 1e4": lambda seed: 1e4 * (2 * normal(2, 9, 21, seed=seed)).round().clamp(-4, 4),
    "1e-4": lambda seed: 1e-4 * normal(2, 9, 21, seed=seed),
    "1e30": lambda seed: 1e30 * normal(2, 9, 21, seed=seed),
    "1e-30": lambda seed: 1e-30 * normal(2, 9, 21, seed=seed),
    "1e-308": lambda seed: 1e-308 * normal(2, 9, 21, seed=seed),
    "one class dominates": one_dominates,
    "all equal": lambda seed: torch.full((2, 9, 21), 0.5 + seed, dtype=torch.float64),
    "all negative": lambda seed: -5 - normal(2, 9, 21, seed=seed).abs(),
    "zero": lambda seed: torch.zeros(2, 9, 21, dtype=torch.float64),
    "zero in one region": lambda seed: normal(2, 9, 21, seed=seed) * (torch.arange(21) != 7),
    "mixed sizes": lambda seed: normal(2, 9, 21, seed=seed) * torch.logspace(-6, 3, 9)[:, None],
}


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("gram", GRAMS)
class TestLogits:
    @pytest.mark.parametrize("student", sorted(LOGITS))
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_against_ordinary_ones(
        self, backend: str, gram: str, student: str, normalize: str, dtype: torch.dtype
    ) -> None:
        """Each on the student's side and on the teacher's, and on both."""
        hard, ordinary = LOGITS[student], normal(2, 9, 21, seed=5)
        options = {"gram": gram, "normalize": normalize, "reduction": "none"}
        for s, t in ((hard(0), ordinary), (ordinary, hard(0)), (hard(0), hard(1))):
            assert_no_worse_than_eager(of_logits(s.to(dtype), t.to(dtype), **options), backend)

    @pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e3])
    @pytest.mark.parametrize("normalize", NORMALIZATIONS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_temperature(self, backend: str, gram: str, temperature: float, normalize: str, dtype: torch.dtype) -> None:
        logits = (normal(2, 9, 21, seed=seed).to(dtype) for seed in range(2))
        assert_no_worse_than_eager(of_logits(*logits, gram=gram, normalize=normalize, temperature=temperature), backend)

    @pytest.mark.parametrize("size", [1e-10, 1e10, 1e19, 1e22, 1e30])
    @pytest.mark.parametrize("normalize", ["l2", "zscore"])
    def test_normalised_logits_have_no_size(self, backend: str, gram: str, size: float, normalize: str) -> None:
        """Their squares overflow float32 from 2e19 on."""
        student, teacher = (normal(2, 40, 21, seed=seed).float() for seed in range(2))
        options: dict[str, Any] = {"gram": gram, "normalize": normalize, "temperature": 1.0}
        sized = (size * student).requires_grad_(), size * teacher
        loss = gram_kl(*sized, **options, backend=backend)
        expected = gram_kl(*(part.detach().double() for part in sized), **options, backend="reference")
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=0)
        (gradient,) = grad(loss, sized[0])
        leaf = student.double().requires_grad_()
        (exact,) = grad(gram_kl(leaf, teacher.double(), **options, backend="reference"), leaf)
        tolerance = 2e-5 * float(exact.abs().max()) + 1.5e-45 * size  # the second is float32's smallest number
        torch.testing.assert_close(gradient.double() * size, exact, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("size", [1e-300, 1e-307, 1e-309, 5e-324])
    def test_logits_near_the_smallest_number(self, backend: str, gram: str, size: float) -> None:
        """Intervals between them have no reciprocal."""
        student, teacher = (size * normal(2, 300, 1, seed=seed).round() for seed in range(2))
        student.requires_grad_()
        loss = gram_kl(student, teacher, gram=gram, scales=(1,), backend=backend)
        assert loss == 0
        assert grad(loss, student)[0].abs().max() <= 300 * size * 4

    def test_exact_products(self, backend: str, gram: str) -> None:
        """Logits 0, ±1e4 and ±2e4 have Gram entries that float32 holds exactly, so the loss of 1e8 has no excuse."""
        size = {0: torch.tensor([1, 2, 1, 2, 1, 2]), 1: torch.tensor([2, 1, 1, 2, 2, 1])}
        student, teacher = (
            1e4 * normal(6, 9, 21, seed=seed).round().clamp(-1, 1) * size[seed][:, None, None] for seed in range(2)
        )
        exact = gram_kl(student, teacher, gram=gram, reduction="none", backend="reference")
        got = gram_kl(student.float(), teacher.float(), gram=gram, reduction="none", backend=backend)
        assert exact.max() > 1e7
        torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_finite_where_the_definition_is(self, backend: str, gram: str, dtype: torch.dtype) -> None:
        """A confident wrong student at a low temperature costs much, but not infinity."""
        student, teacher = torch.zeros(2, 5, 21, dtype=dtype), torch.zeros(2, 5, 21, dtype=dtype)
        student[:, 0], teacher[:, 1] = 1e3, 1e3
        student[1], teacher[0] = -student[1], -teacher[0]
        student.requires_grad_()
        loss = gram_kl(student, teacher, gram=gram, temperature=1e-2, backend=backend)
        (gradient,) = grad(loss, student)
        assert loss.isfinite()
        assert loss >= 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("dtype", DTYPES)
class TestSizes:
    @pytest.mark.parametrize("pyramid", PYRAMIDS)
    @pytest.mark.parametrize("size", [1, 2, 7, 14])
    @pytest.mark.parametrize("scales", [(1, 2, 4), (16,), (3, 1)])
    def test_maps(
        self, backend: str, gram: str, dtype: torch.dtype, pyramid: str, size: int, scales: tuple[int, ...]
    ) -> None:
        student = Network(5, size, size, dtype=dtype, weight_dtype=dtype, bias_dtype=dtype)
        case = Case(student=student, teacher=student, options={"gram": gram, "pyramid": pyramid, "scales": scales})
        assert_no_worse_than_eager(icd_loss_problem(case), backend)

    @pytest.mark.parametrize("classes", [2, 3, 2000])
    def test_classes(self, backend: str, gram: str, dtype: torch.dtype, classes: int) -> None:
        options = {"gram": gram, "scales": (1,) if classes == 2000 else (1, 2, 4)}
        network = Network(dtype=dtype, weight_dtype=dtype, bias_dtype=dtype, magnitude=2.0)
        case = Case(batch=1, classes=classes, student=network, teacher=network, options=options)
        assert_no_worse_than_eager(icd_loss_problem(case), backend)

    @pytest.mark.parametrize("batch", [1, 2, 33])
    def test_batches(self, backend: str, gram: str, dtype: torch.dtype, batch: int) -> None:
        student = Network(dtype=dtype, weight_dtype=dtype, bias_dtype=dtype)
        case = Case(batch=batch, student=student, teacher=student, options={"gram": gram, "scales": (1, 2)})
        assert_no_worse_than_eager(icd_loss_problem(case), backend)

    def test_grams_too_large_to_hold_at_once(self, backend: str, gram: str, dtype: torch.dtype) -> None:
        """Of 600 images or 24 x 24 cells, and a class form of 1,100 classes."""
        shape, scales = {"class": ((1, 1100, 1), (1,)), "spatial": ((2, 3, 576), (24,)), "sample": ((600, 3, 1), (1,))}[
            gram
        ]
        logits = (2 * normal(*shape, seed=seed).to(dtype) for seed in range(2))
        assert_no_worse_than_eager(of_logits(*logits, gram=gram, scales=scales, reduction="sum"), backend)

    def test_float16_that_would_overflow(self, backend: str, gram: str, dtype: torch.dtype) -> None:
        """Near float16's largest, 65504: sums over pixels and channels need the math's own dtype."""
        network = Network(6, 8, 8, dtype=torch.float16, weight_dtype=torch.float16, bias_dtype=None)
        teacher = replace(network, weight_dtype=dtype)
        tensors = Case(student=network, teacher=teacher).tensors()
        large = {name: getattr(tensors, name).sign() * 6e4 for name in ("student_features", "teacher_features")}
        tensors = tensors._replace(**large, student_weight=tensors.student_weight * 1e-3)
        case = Case(options={"gram": gram, "normalize": "l2"})
        assert_no_worse_than_eager(replace(icd_loss_problem(case), inputs=tensors), backend)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [3, 16, 33])
@pytest.mark.parametrize("points", [3, 4, 5, 8, 9, 17, 63, 64, 65])
def test_points_that_fill_no_tile(backend: str, dtype: torch.dtype, classes: int, points: int) -> None:
    """Whole tiles of a Gram matrix, parts of one, and more points than are taken at once; vectors full and not."""
    logits = (normal(points, classes, 5, seed=seed).to(dtype) for seed in range(2))
    assert_no_worse_than_eager(of_logits(*logits, gram="sample", scales=(1, 2), reduction="sum"), backend)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("pyramid", PYRAMIDS)
class TestNoImages:
    def test_loss_and_gradients(self, backend: str, gram: str, pyramid: str) -> None:
        """As in PyTorch: the mean of nothing is NaN, its sum 0."""
        for reduction, expected in (("mean", torch.nan), ("sum", 0.0)):
            tensors = Case(batch=0).tensors().requiring_grad(*STUDENT)
            loss = loss_of(tensors, backend, gram=gram, pyramid=pyramid, reduction=reduction)
            torch.testing.assert_close(loss.detach(), torch.tensor(expected, dtype=torch.float64), equal_nan=True)
            features, *parameters = grad(loss, tensors.student)
            assert features.shape == (0, 3, 4, 4)
            assert not any(parameter.any() for parameter in parameters)

    def test_of_each(self, backend: str, gram: str, pyramid: str) -> None:
        tensors = Case(batch=0).tensors().requiring_grad(*STUDENT)
        loss = loss_of(tensors, backend, gram=gram, pyramid=pyramid, reduction="none")
        assert loss.shape == (0,)
        assert not any(parameter.any() for parameter in grad(loss.sum(), tensors.student)[1:])


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
class TestNotFinite:
    """NaN or infinity in gives NaN out, in the loss and in the gradient, and never a silent zero."""

    @pytest.mark.parametrize("where", Tensors._fields)
    def test_anywhere(self, backend: str, normalize: str, gram: str, value: float, where: str) -> None:
        for dtype in DTYPES:
            network = Network(dtype=dtype, weight_dtype=dtype, bias_dtype=dtype)
            tensors = Case(batch=3, student=network, teacher=network).tensors()
            getattr(tensors, where).view(-1)[1] = value
            tensors = tensors.requiring_grad(*STUDENT)
            for reduction in ("mean", "sum"):
                loss = loss_of(tensors, backend, gram=gram, normalize=normalize, reduction=reduction)
                assert loss.isnan()
                for gradient in grad(loss, tensors.student):
                    assert gradient.isnan().any()

    def test_other_images_are_untouched(self, backend: str, normalize: str, gram: str, value: float) -> None:
        tensors = Case(batch=3).tensors().requiring_grad("student_features")
        options = {"gram": gram, "normalize": normalize, "reduction": "none"}
        clean = loss_of(tensors, backend, **options).detach()
        (clean_gradient,) = grad(loss_of(tensors, backend, **options).sum(), tensors.student_features)
        with torch.no_grad():
            tensors.student_features[1, 0, 2, 2] = value
        loss = loss_of(tensors, backend, **options)
        (gradient,) = grad(loss.sum(), tensors.student_features)
        assert loss[1].isnan()
        assert gradient[1].isnan().any()
        if gram == "sample":  # every image's row holds its product with image 1
            assert loss.isnan().all()
            return
        torch.testing.assert_close(loss[[0, 2]], clean[[0, 2]], rtol=0, atol=0)
        torch.testing.assert_close(gradient[[0, 2]], clean_gradient[[0, 2]], rtol=1e-13, atol=0)

    def test_logits(self, backend: str, normalize: str, gram: str, value: float) -> None:
        for side in range(2):
            logits = [side_logits.clone() for side_logits in Case().local_logits()]
            logits[side][1, 2, 3] = value
            student = logits[0].requires_grad_()
            loss = gram_kl(student, logits[1], gram=gram, normalize=normalize, backend=backend)
            assert loss.isnan()
            assert grad(loss, student)[0].isnan().any()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_infinite_upstream_gradient(backend: str) -> None:
    """As when a loss scaler overflows: the scaler must see it in the gradients."""
    tensors = Case().tensors().requiring_grad(*STUDENT)
    for gradient in grad(loss_of(tensors, backend) * torch.inf, tensors.student):
        assert not gradient.isfinite().any()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_largest_float32(backend: str) -> None:
    """Logits whose products overflow float32 give NaN or infinity, not a number that looks like a loss."""
    logits = [torch.full((1, 4, 21), 3e20) * torch.tensor([1.0, -1.0, 2.0, 0.5])[:, None] for _ in range(2)]
    assert not gram_kl(logits[0], logits[1].roll(1, 1), backend=backend).isfinite()
