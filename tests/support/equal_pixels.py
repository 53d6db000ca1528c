"""Maps whose pixels are all the same: their sums round the same way at every step, and a long one drifts."""

from __future__ import annotations

import torch

from icd_kernels import region_features

SIDES = ((6, 8), (7, 7), (14, 14), (28, 28), (9, 100))
LAYOUTS = ("contiguous", "channels last", "expanded")


def largest_error(backend: str, sides: tuple[int, int], layout: str) -> float:
    """The largest error of a cell's mean, in units of float32's eps times the value of its pixels."""
    values = torch.randn(2, 70, 1, 1, generator=torch.Generator().manual_seed(0))
    features = values.expand(2, 70, *sides)
    if layout != "expanded":
        memory_format = torch.channels_last if layout == "channels last" else torch.contiguous_format
        features = features.contiguous(memory_format=memory_format)
    exact = values[:, None, :, 0, 0].double()
    got = region_features(features, scales=(1, 2, 4), backend=backend)
    error = (got.double() - exact).abs() / exact.abs()
    return error.max().item() / torch.finfo(torch.float32).eps


def assert_no_drift(backend: str, sides: tuple[int, int], layout: str, *, allowed: float = 2) -> None:
    """The error is at most eager's and `allowed` units more."""
    assert largest_error(backend, sides, layout) <= largest_error("reference", sides, layout) + allowed
