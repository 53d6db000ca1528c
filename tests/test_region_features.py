"""region_features: means over every region, in every backend, layout and dtype; derivatives to any order."""

from __future__ import annotations

from typing import Any

import equal_pixels
import pytest
import torch
from cases import COMPILED, EVERY_BACKEND, LAYOUTS, feature_map
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import region_features, region_logits

SCALES = [(1, 2, 4), (3, 1), (5,), (1, 7), (2, 3)]
"""In the last, a coarse cell is no union of fine cells."""
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def means(features: Tensor, scales: tuple[int, ...], pyramid: str) -> Tensor:
    """By loops over regions, in float64."""
    maps = features.double()
    if pyramid == "nested":
        finest = max(scales)
        maps = means(maps, (finest,), "adaptive").transpose(1, 2).unflatten(2, (finest, finest))
    height, width = maps.shape[2:]
    regions = []
    for scale in scales:
        for i in range(scale):
            for j in range(scale):
                rows = slice(i * height // scale, -(-(i + 1) * height // scale))
                columns = slice(j * width // scale, -(-(j + 1) * width // scale))
                regions.append(maps[:, :, rows, columns].mean((2, 3)))
    return torch.stack(regions, 1)


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_are_means(backend: str, layout: str, scales: tuple[int, ...], pyramid: str) -> None:
    features = feature_map((3, 5, 7, 7), layout, torch.float64).requires_grad_()
    got = region_features(features, scales=scales, pyramid=pyramid, backend=backend)
    expected = means(features, scales, pyramid)
    assert_close(got, expected)
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient, wanted = (torch.autograd.grad(x, features, upstream)[0] for x in (got, expected))
    assert_close(gradient, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Sums are in float32 or float64; the gradient has the map's dtype."""
    features = feature_map((2, 9, 14, 14), "contiguous", dtype).requires_grad_()
    got = region_features(features, backend=backend)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(got.double(), means(features, (1, 2, 4), "adaptive").detach(), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(got.sum(), features)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_derivatives_of_any_order(backend: str, pyramid: str) -> None:
    features = feature_map((2, 3, 5, 4), "contiguous", torch.float64).requires_grad_()

    def regions(leaf: Tensor) -> Tensor:
        return region_features(leaf, scales=(1, 3), pyramid=pyramid, backend=backend)

    assert torch.autograd.gradcheck(regions, (features,))
    assert torch.autograd.gradgradcheck(lambda leaf: regions(leaf).square(), (features,))


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_linear_head_of_them_is_region_logits(backend: str) -> None:
    features = feature_map((2, 6, 7, 7), "contiguous", torch.float64)
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    rows = region_features(features, backend=backend)
    expected = region_logits(features, weight, bias, backend=backend)
    assert_close((rows @ weight.t() + bias).transpose(1, 2), expected)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_compiles_in_one_graph(backend: str) -> None:
    features = feature_map((2, 3, 7, 7), "contiguous", torch.float32).requires_grad_()
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(x: Tensor) -> Tensor:
        return region_features(x, backend=backend, pyramid="nested")

    got, expected = compiled(features), region_features(features, backend=backend, pyramid="nested")
    assert_close(got, expected)
    assert_close(*(torch.autograd.grad(x.square().sum(), features)[0] for x in (got, expected)))


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_nan_stays_in_its_regions(backend: str, pyramid: str) -> None:
    features = torch.ones(1, 2, 4, 4)
    features[0, 1, 0, 0] = torch.nan
    got = region_features(features, scales=(1, 2), pyramid=pyramid, backend=backend)
    assert got[0, :, 1].isnan().tolist() == [True, True, False, False, False]
    assert got[0, :, 0].eq(1).all()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_first_in_inference_mode_then_in_training(backend: str) -> None:
    """What is kept between calls must serve a graph."""
    features = feature_map((2, 3, 8, 8), "contiguous", torch.float32)
    with torch.inference_mode():
        first = region_features(features, scales=(1, 2, 8), backend=backend)
    again = region_features(features.requires_grad_(), scales=(1, 2, 8), backend=backend)
    assert_close(again, first.clone())
    again.sum().backward()


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_an_empty_batch(backend: str) -> None:
    features = torch.ones(0, 2, 4, 4, requires_grad=True)
    got = region_features(features, backend=backend)
    assert got.shape == (0, 21, 2)
    assert torch.autograd.grad(got.sum(), features)[0].shape == (0, 2, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": torch.ones(2, 3, 4)}, ValueError, r"features must have shape \(B, C, H, W\), got \(2, 3, 4\)"),
        ({"features": [1.0]}, TypeError, r"features must be a torch.Tensor"),
        ({"features": torch.ones(2, 0, 4, 4)}, ValueError, "at least one channel and pixel"),
        ({"scales": (0,)}, ValueError, "scales must hold at least one scale"),
        ({"pyramid": "flat"}, ValueError, "pyramid must be one of"),
        ({"backend": "other"}, ValueError, "backend must be one of"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        region_features(**{"features": torch.ones(2, 3, 4, 4), **arguments})


@pytest.mark.parametrize("layout", equal_pixels.LAYOUTS)
@pytest.mark.parametrize("sides", equal_pixels.SIDES)
@pytest.mark.parametrize("backend", COMPILED)
def test_equal_pixels_keep_their_value(backend: str, sides: tuple[int, int], layout: str) -> None:
    equal_pixels.assert_no_drift(backend, sides, layout)
