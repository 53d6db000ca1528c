"""region_features by the interpreter: layouts, dtypes, overlapping cells, NaN, and the gradient."""

from __future__ import annotations

import equal_pixels
import pytest
import torch
from cases import LAYOUTS, feature_map
from programs import interpreted
from torch.testing import assert_close

from icd_kernels import region_features

TRITON = "triton"


@pytest.mark.parametrize("scales", [(1, 2, 4), (5, 3)])
@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_the_reference(layout: str, pyramid: str, scales: tuple[int, ...]) -> None:
    features = feature_map((2, 19, 7, 6), layout).requires_grad_()
    with interpreted() as run:
        got = region_features(features, scales=scales, pyramid=pyramid, backend=TRITON)
        upstream = torch.randn(got.shape, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(got, features, upstream)
    assert [name for name, _ in run.launches] == ["region_features_kernel", "region_features_backward_kernel"]
    expected = region_features(features, scales=scales, pyramid=pyramid, backend="reference")
    assert_close(got, expected)
    assert_close(gradient, torch.autograd.grad(expected, features, upstream)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    features = feature_map((2, 70, 9, 9), "channels_last", dtype).requires_grad_()
    with interpreted():
        got = region_features(features, backend=TRITON)
        (gradient,) = torch.autograd.grad(got.square().sum(), features)
    expected = region_features(features, backend="reference")
    assert got.dtype == torch.float32
    assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert gradient.dtype == dtype
    assert_close(gradient, torch.autograd.grad(expected.square().sum(), features)[0])


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_stays_in_its_cells(value: float, pyramid: str) -> None:
    features = feature_map((2, 3, 8, 8))
    features[1, 2, 5, 0] = value
    with interpreted():
        got = region_features(features, pyramid=pyramid, backend=TRITON)
    assert_close(got, region_features(features, pyramid=pyramid, backend="reference"), equal_nan=True)


def test_any_number_of_derivatives() -> None:
    features = feature_map((1, 2, 3, 4)).requires_grad_()
    with interpreted():
        assert torch.autograd.gradgradcheck(
            lambda leaf: region_features(leaf, scales=(2,), backend=TRITON).square(), (features,), fast_mode=True
        )


def test_opcheck() -> None:
    features = feature_map((2, 5, 6, 7), "channels_last", torch.float32)
    operators = torch.ops.icd_kernels_triton
    torch.library.opcheck(operators.region_features.default, (features, (1, 2)))
    grad = torch.randn(2, 5, 5)
    arguments = (grad, features.shape, features.stride(), torch.float32, (1, 2))
    torch.library.opcheck(operators.region_features_backward.default, arguments)


@pytest.mark.parametrize("layout", equal_pixels.LAYOUTS)
@pytest.mark.parametrize("sides", equal_pixels.SIDES)
def test_equal_pixels_keep_their_value(sides: tuple[int, int], layout: str) -> None:
    """The interpreter's products add one pixel after another, where tensor cores add 8 or 16 at once."""
    equal_pixels.assert_no_drift("triton", sides, layout, allowed=4)
