"""Every backend computes the definition: against loops that state it once more, and against the released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import EVERY_BACKEND, Case, Network, Tensors, loss_of, option_grid
from definition import local_logits, per_image_loss
from torch import Tensor

from icd_kernels import gram_kl, region_logits
from icd_kernels.options import rank_weights

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.parametrize("backend", EVERY_BACKEND)]

GEOMETRIES = [
    pytest.param((1, 2, 4), (4, 4), id="divides"),
    pytest.param((1, 2, 4), (7, 5), id="overlaps"),
    pytest.param((4, 2, 1), (1, 2), id="larger than the map"),
    pytest.param((3, 1, 3, 2), (6, 4), id="any order and repeated"),
    pytest.param((1,), (14, 3), id="global only"),
    pytest.param((5,), (2, 14), id="one scale"),
]


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize(("scales", "size"), GEOMETRIES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_region_logits(
    backend: str, scales: tuple[int, ...], size: tuple[int, int], pyramid: str, has_bias: bool
) -> None:
    network = Network(height=size[0], width=size[1], bias_dtype=torch.float64 if has_bias else None)
    features, weight, bias = network.tensors(batch=2, classes=3, seed=1)
    got = region_logits(features, weight, bias, scales=scales, pyramid=pyramid, backend=backend)
    expected = local_logits(
        features.tolist(), weight.tolist(), None if bias is None else bias.tolist(), scales, pyramid
    )
    assert got.shape == (2, 3, sum(scale**2 for scale in scales))
    torch.testing.assert_close(got, as_tensor(expected).transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scales", "size"), GEOMETRIES)
@pytest.mark.parametrize("options", option_grid(reduction="none"))
def test_loss(backend: str, options: dict[str, Any], scales: tuple[int, ...], size: tuple[int, int]) -> None:
    student = Network(height=size[0], width=size[1])
    tensors = Case(batch=2, classes=3, student=student, teacher=Network(channels=2, height=3, width=4)).tensors()
    got = loss_of(tensors, backend, scales=scales, temperature=1.5, **options)
    expected = loss_by_loops(
        tensors, scales=scales, scale_weights=rank_weights(len(scales)), temperature=1.5, **options
    )
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
@pytest.mark.parametrize("scale_weights", [(0.0, 1.0, 0.0), (0.5, 0.0, 2.0), (3, 2, 1)])
def test_scale_weights(backend: str, gram: str, scale_weights: tuple[float, ...]) -> None:
    tensors = Case(batch=3, classes=4).tensors()
    options: dict[str, Any] = {"scales": (1, 3, 2), "scale_weights": scale_weights, "gram": gram, "temperature": 1.0}
    got = loss_of(tensors, backend, reduction="none", **options)
    expected = loss_by_loops(tensors, pyramid="nested", normalize="none", **options)
    other = loss_by_loops(tensors, pyramid="adaptive", normalize="none", **options)
    torch.testing.assert_close(got, other, rtol=1e-11, atol=1e-12)
    nested = loss_of(tensors, backend, reduction="none", pyramid="nested", **options)
    torch.testing.assert_close(nested, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
def test_all_weights_zero_is_zero_and_differentiable(backend: str, gram: str) -> None:
    tensors = Case().tensors().requiring_grad("student_features", "student_weight")
    loss = loss_of(tensors, backend, gram=gram, scale_weights=(0.0, 0.0, 0.0))
    loss.backward()
    assert loss.item() == 0
    assert tensors.student_features.grad is not None
    assert tensors.student_weight.grad is not None
    assert not tensors.student_features.grad.any()
    assert not tensors.student_weight.grad.any()


@pytest.mark.parametrize("gram", ["class", "spatial", "sample"])
def test_reductions(backend: str, gram: str) -> None:
    tensors = Case(batch=3).tensors()
    each, mean, total = (loss_of(tensors, backend, gram=gram, reduction=name) for name in ("none", "mean", "sum"))
    assert each.shape == (3,)
    assert mean.shape == total.shape == ()
    torch.testing.assert_close(mean, each.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(total, each.sum(), rtol=1e-13, atol=0)


def test_defaults_are_the_papers_with_temperature_4_and_rank_weights(backend: str) -> None:
    tensors = Case().tensors()
    spelled_out = {"scales": (1, 2, 4), "scale_weights": (1 / 6, 2 / 6, 3 / 6), "gram": "class", "pyramid": "adaptive"}
    by_default = loss_of(tensors, backend)
    torch.testing.assert_close(
        by_default, loss_of(tensors, backend, **spelled_out, normalize="none", temperature=4.0, reduction="mean")
    )


class TestReleasedForm:
    """spatial, nested, l2, τ = 2: what the authors' released code computes."""

    options: dict[str, Any] = {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0}  # noqa: RUF012

    def test_scale_1_contributes_nothing(self, backend: str) -> None:
        tensors = Case().tensors()
        logits = region_logits(
            tensors.student_features, tensors.student_weight, tensors.student_bias, scales=(1,), backend=backend
        )
        unit = F.normalize(logits, dim=1)
        torch.testing.assert_close(unit.transpose(1, 2) @ unit, torch.ones(2, 1, 1, dtype=torch.float64))
        assert loss_of(tensors, backend, scales=(1,), **self.options).item() == 0
        with_it = loss_of(tensors, backend, scales=(1, 2, 4), **self.options)
        weights = {"scale_weights": (2 / 6, 3 / 6)}
        without_it = loss_of(tensors, backend, scales=(2, 4), **weights, **self.options)
        torch.testing.assert_close(with_it, without_it, rtol=1e-12, atol=0)

    def test_scale_1_does_contribute_in_class_form(self, backend: str) -> None:
        assert loss_of(Case().tensors(), backend, scales=(1,), gram="class").item() > 1e-3

    @pytest.mark.parametrize("size", [2, 4, 7, 8, 14])
    @pytest.mark.parametrize(
        ("released_scales", "scale_weights"), [((1, 2, 4), (1 / 6, 2 / 6, 3 / 6)), ((1, 2), (1 / 3, 2 / 3, 0.0))]
    )
    def test_its_scale_sets(
        self, backend: str, released_scales: tuple[int, ...], scale_weights: tuple[float, ...], size: int
    ) -> None:
        student = Network(height=size, width=size)
        tensors = Case(batch=3, student=student, teacher=Network(channels=4, height=8, width=8)).tensors()
        got = loss_of(tensors, backend, scales=(1, 2, 4), scale_weights=scale_weights, **self.options)
        torch.testing.assert_close(got, released_code(tensors, released_scales), rtol=1e-12, atol=0)


def released_code(tensors: Tensors, scales: tuple[int, ...]) -> Tensor:
    """The released code: pool to 4 x 4 whatever the scales, pool that further, Z^T Z of unit logits, KL at τ = 2."""

    def scale_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> dict[int, Tensor]:
        grids = {4: F.adaptive_avg_pool2d(features, 4)}
        grids[2] = F.avg_pool2d(grids[4], 2)
        grids[1] = F.avg_pool2d(grids[2], 2)
        return {m: F.conv2d(grid, weight[:, :, None, None], bias).flatten(2) for m, grid in grids.items()}

    student, teacher = scale_logits(*tensors[:3]), scale_logits(*tensors[3:])
    total = torch.zeros((), dtype=torch.float64)
    for rank, scale in enumerate(scales, start=1):
        s, t = F.normalize(student[scale], dim=1), F.normalize(teacher[scale], dim=1)
        log_q = F.log_softmax(s.transpose(1, 2) @ s / 2, dim=-1)
        p = F.softmax(t.transpose(1, 2) @ t / 2, dim=-1)
        total = total + rank * F.kl_div(log_q, p, reduction="batchmean")
    return total / (len(scales) * (len(scales) + 1) / 2)


def test_gram_kl_of_given_logits(backend: str) -> None:
    case = Case(batch=3, classes=4, options={"scales": (2, 1)})
    student, teacher = case.local_logits()
    got = gram_kl(student, teacher, scales=(2, 1), gram="sample", reduction="none", backend=backend)
    lists = student.transpose(1, 2).tolist(), teacher.transpose(1, 2).tolist()
    expected = per_image_loss(*lists, (2, 1), rank_weights(2), "sample", "none", 4.0)
    torch.testing.assert_close(got, as_tensor(expected), rtol=1e-12, atol=1e-13)


def loss_by_loops(
    tensors: Tensors, *, pyramid: str, scales: tuple[int, ...], reduction: str = "none", **rest: Any
) -> Tensor:
    lists: list[Any] = [None if tensor is None else tensor.tolist() for tensor in tensors]
    student = local_logits(lists[0], lists[1], lists[2], scales, pyramid)
    teacher = local_logits(lists[3], lists[4], lists[5], scales, pyramid)
    assert reduction == "none"
    return as_tensor(per_image_loss(student, teacher, scales, **rest))


def as_tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
