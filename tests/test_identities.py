"""What must hold whatever the numbers: invariances, and the ways in which the functions agree with each other."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from cases import (
    EVERY_BACKEND,
    GRAMS,
    LAYOUTS,
    PYRAMIDS,
    STUDENT,
    Case,
    Network,
    Tensors,
    feature_map,
    loss_of,
    option_grid,
)
from torch import Tensor
from torch.autograd import grad

from icd_kernels import gram_kl, region_logits
from icd_kernels.options import NORMALIZATIONS

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.parametrize("backend", EVERY_BACKEND)]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
class TestOwnTeacher:
    """A student that is its teacher: no loss and no gradient, to the rounding of the terms that cancel."""

    @pytest.mark.parametrize("pyramid", PYRAMIDS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
    def test_icd_loss(
        self, backend: str, gram: str, normalize: str, pyramid: str, dtype: torch.dtype, tolerance: float
    ) -> None:
        network = Network(4, 7, 5, dtype=dtype, weight_dtype=dtype, bias_dtype=dtype)
        student = network.tensors(batch=3, classes=6, seed=0)
        tensors = Tensors(*student, *student).requiring_grad(*STUDENT)
        loss = loss_of(tensors, backend, gram=gram, normalize=normalize, pyramid=pyramid, reduction="none")
        assert loss.abs().max() <= tolerance
        for gradient in grad(loss.sum(), tensors.student):
            assert gradient.abs().max() <= 10 * tolerance

    def test_gram_kl(self, backend: str, gram: str, normalize: str) -> None:
        logits = Case(batch=3, classes=6).local_logits()[0].requires_grad_()
        loss = gram_kl(logits, logits, gram=gram, normalize=normalize, backend=backend)
        assert abs(loss.item()) <= 1e-13
        assert grad(loss, logits)[0].abs().max() <= 1e-12

    def test_any_other_teacher_costs(self, backend: str, gram: str, normalize: str) -> None:
        student, teacher = Case(batch=3, classes=6).local_logits()
        assert (gram_kl(student, teacher, gram=gram, normalize=normalize, reduction="none", backend=backend) > 0).all()


@pytest.mark.parametrize("options", option_grid(reduction="none"))
class TestOrder:
    def test_of_classes(self, backend: str, options: dict[str, Any]) -> None:
        """Both networks' classes in another order: the same loss, and the weights' gradient in that order."""
        order = torch.tensor([3, 0, 4, 2, 1])
        tensors = Case(batch=3).tensors()
        permuted = tensors._replace(
            **{name: getattr(tensors, name)[order] for name in Tensors._fields if not name.endswith("features")}
        )
        loss, gradients = loss_and_gradients(tensors, backend, **options)
        other_loss, other_gradients = loss_and_gradients(permuted, backend, **options)
        close(other_loss, loss)
        close(other_gradients[0], gradients[0])
        close(other_gradients[1], gradients[1][order])
        close(other_gradients[2], gradients[2][order])

    def test_of_images(self, backend: str, options: dict[str, Any]) -> None:
        order = torch.tensor([2, 0, 3, 1])
        tensors = Case(batch=4).tensors()
        features = {name: getattr(tensors, name)[order] for name in ("student_features", "teacher_features")}
        loss, gradients = loss_and_gradients(tensors, backend, **options)
        other_loss, other_gradients = loss_and_gradients(tensors._replace(**features), backend, **options)
        close(other_loss, loss[order])
        close(other_gradients[0], gradients[0][order])
        close(other_gradients[1], gradients[1])

    def test_of_scales(self, backend: str, options: dict[str, Any]) -> None:
        """Scales with their weights; size 4 folds in every order, 5 in none."""
        for size in (4, 5):
            tensors = Case(student=Network(height=size, width=size)).tensors()
            results = [
                loss_and_gradients(tensors, backend, **options, scales=scales, scale_weights=weights)
                for pairs in permutations([(1, 0.5), (2, 0.0), (4, 2.0)])
                for scales, weights in [zip(*pairs, strict=True)]
            ]
            for loss, gradients in results[1:]:
                close(loss, results[0][0])
                for gradient, expected in zip(gradients, results[0][1], strict=True):
                    close(gradient, expected)

    def test_mirrored_maps(self, backend: str, options: dict[str, Any]) -> None:
        """Cells overlap symmetrically: mirroring both maps mirrors the student's gradient and nothing else."""
        tensors = Case(student=Network(height=7, width=5), teacher=Network(2, 3, 6)).tensors()
        features = {name: getattr(tensors, name).flip(2, 3) for name in ("student_features", "teacher_features")}
        loss, gradients = loss_and_gradients(tensors, backend, **options)
        other_loss, other_gradients = loss_and_gradients(tensors._replace(**features), backend, **options)
        close(other_loss, loss)
        close(other_gradients[0], gradients[0].flip(2, 3))

    def test_repeated_scales_share_their_weight(self, backend: str, options: dict[str, Any]) -> None:
        tensors = Case().tensors()
        twice = loss_of(tensors, backend, **options, scales=(2, 4, 2), scale_weights=(0.25, 1, 0.75))
        close(twice, loss_of(tensors, backend, **options, scales=(2, 4), scale_weights=(1, 1)))

    @pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"contiguous"}))
    def test_memory_layout(self, backend: str, options: dict[str, Any], layout: str) -> None:
        student, teacher = feature_map((2, 3, 4, 4), layout), feature_map((2, 2, 5, 3), layout, seed=1)
        strided = Case().tensors()._replace(student_features=student, teacher_features=teacher)
        contiguous = strided.mapped(torch.Tensor.contiguous)
        for got, expected in zip(
            flattened(loss_and_gradients(strided, backend, **options)),
            flattened(loss_and_gradients(contiguous, backend, **options)),
            strict=True,
        ):
            close(got, expected)


@pytest.mark.parametrize("options", option_grid(pyramid="nested", reduction="none"))
def test_nested_is_adaptive_where_cells_divide(backend: str, options: dict[str, Any]) -> None:
    for scales, size in (((1, 2, 4), (8, 12)), ((3, 1), (3, 6)), ((2, 2), (2, 2))):
        tensors = Case(student=Network(3, *size), teacher=Network(2, *size)).tensors()
        nested = loss_and_gradients(tensors, backend, **options, scales=scales)
        adaptive = loss_and_gradients(tensors, backend, **{**options, "pyramid": "adaptive"}, scales=scales)
        for got, expected in zip(flattened(nested), flattened(adaptive), strict=True):
            close(got, expected)


def test_nested_differs_where_they_do_not(backend: str) -> None:
    tensors = Case(student=Network(3, 7, 7)).tensors()
    pair = (region_logits(*tensors[:3], pyramid=pyramid, backend=backend) for pyramid in PYRAMIDS)
    adaptive, nested = pair
    assert (adaptive - nested).abs()[:, :, :5].max() > 1e-3
    close(adaptive[:, :, 5:], nested[:, :, 5:])


@pytest.mark.parametrize("options", option_grid())
@pytest.mark.parametrize("size", [4, 7])
def test_icd_loss_is_gram_kl_of_region_logits(backend: str, options: dict[str, Any], size: int) -> None:
    tensors = Case(batch=3, student=Network(4, size, size)).tensors().requiring_grad(*STUDENT)
    rest = {name: value for name, value in options.items() if name != "pyramid"}
    student, teacher = (
        region_logits(*network, pyramid=options["pyramid"], backend=backend) for network in (tensors[:3], tensors[3:])
    )
    composed = gram_kl(student, teacher, backend=backend, **rest)
    fused = loss_of(tensors, backend, **options)
    close(fused, composed)
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[: fused.numel()].view(fused.shape)
    for got, expected in zip(
        grad(fused, tensors.student, upstream), grad(composed, tensors.student, upstream), strict=True
    ):
        close(got, expected)


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_gradients_of_reductions_agree(backend: str, gram: str, pyramid: str) -> None:
    """mean and sum are none's, reduced outside."""
    tensors = Case(batch=4).tensors().requiring_grad(*STUDENT)
    options = {"gram": gram, "pyramid": pyramid}
    each = loss_of(tensors, backend, reduction="none", **options)
    for reduction, outside in (("mean", each.mean()), ("sum", each.sum())):
        inside = loss_of(tensors, backend, reduction=reduction, **options)
        close(inside, outside)
        expected = grad(outside, tensors.student, retain_graph=True)
        for got, wanted in zip(grad(inside, tensors.student), expected, strict=True):
            close(got, wanted)


@pytest.mark.parametrize("gram", ["class", "spatial"])
def test_images_do_not_see_each_other(backend: str, gram: str) -> None:
    """The loss of a batch is that of its images one by one; in sample form it is not."""
    tensors = Case(batch=3).tensors()
    each = loss_of(tensors, backend, gram=gram, reduction="none")
    alone = [loss_of(one_image(tensors, b), backend, gram=gram) for b in range(3)]
    close(each, torch.stack(alone))


def test_one_image_has_no_sample_loss(backend: str) -> None:
    """The 1 x 1 Gram's softmax is 1 on both sides."""
    assert loss_of(Case(batch=1).tensors(), backend, gram="sample").item() == 0


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("normalize", ["l2", "zscore"])
def test_normalized_logits_have_no_size(backend: str, gram: str, normalize: str) -> None:
    """A network's logits times anything above 0 (and, by zscore, plus anything) are the same logits."""
    student, teacher = Case(batch=3).local_logits()
    shift = 2.5 if normalize == "zscore" else 0.0
    changed = gram_kl(7 * student + shift, teacher / 3, gram=gram, normalize=normalize, backend=backend)
    close(changed, gram_kl(student, teacher, gram=gram, normalize=normalize, backend=backend))


@pytest.mark.parametrize("gram", GRAMS)
def test_temperature_divides_the_gram(backend: str, gram: str) -> None:
    """Gram entries are products of two logits: logits times 3 at 9 τ are the logits at τ."""
    student, teacher = Case(batch=3).local_logits()
    hotter = gram_kl(3 * student, 3 * teacher, gram=gram, temperature=18.0, backend=backend)
    close(hotter, gram_kl(student, teacher, gram=gram, temperature=2.0, backend=backend))


@pytest.mark.parametrize("gram", GRAMS)
def test_sign_of_the_logits_is_lost(backend: str, gram: str) -> None:
    """Gram(-z) = Gram(z)."""
    student, teacher = Case(batch=3).local_logits()
    close(gram_kl(-student, teacher, gram=gram, backend=backend), gram_kl(student, teacher, gram=gram, backend=backend))


def test_no_bias_is_a_bias_of_zero(backend: str) -> None:
    tensors = Case().tensors()
    zeros = tensors._replace(student_bias=torch.zeros(5).double(), teacher_bias=torch.zeros(5).double())
    without = tensors._replace(student_bias=None, teacher_bias=None)
    close(loss_of(without, backend), loss_of(zeros, backend))


def loss_and_gradients(tensors: Tensors, backend: str, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = tensors.requiring_grad(*STUDENT)
    loss = loss_of(leaves, backend, **options)
    return loss.detach(), grad(loss.sum(), leaves.student)


def flattened(result: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return result[0], *result[1]


def one_image(tensors: Tensors, b: int) -> Tensors:
    return tensors._replace(
        student_features=tensors.student_features[b : b + 1], teacher_features=tensors.teacher_features[b : b + 1]
    )
