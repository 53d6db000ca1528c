"""Local logits that a network's output came with, such as a cached teacher's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import LOGIT_METHODS, Example, example, map_and_head, objective_of
from torch.testing import assert_close

from icd_kernels import NetworkOutput, region_logits

LOCAL = [method for method in LOGIT_METHODS if "-" in method]


def cached(network: NetworkOutput, dtype: torch.dtype, **options: Any) -> NetworkOutput:
    """Logits and local logits alone, as a file would hold them."""
    with torch.no_grad():
        regions = region_logits(*map_and_head(network), **options)
    return NetworkOutput(network.logits.to(dtype), regions=regions.to(dtype))


def with_cached_teacher(dtype: torch.dtype = torch.float64, **options: Any) -> Example:
    batch = example()
    return batch._replace(teacher=cached(batch.teacher, dtype, **options))


@pytest.mark.parametrize("local_base", [True, False])
@pytest.mark.parametrize("method", LOCAL)
def test_a_cached_teacher_is_the_teacher(method: str, local_base: bool) -> None:
    options: dict[str, Any] = {} if local_base or method.startswith("sd-") else {"local_base": False}
    results = []
    for batch in (example(), with_cached_teacher()):
        out = objective_of(method, **options)(*batch[:3], epoch=20)
        results.append([out.total, *torch.autograd.grad(out.total, batch.leaves, allow_unused=True)])
    assert_close(*results)


@pytest.mark.parametrize("method", LOCAL)
def test_in_float16(method: str) -> None:
    """What is saved is rounded; the math is not."""
    exact = objective_of(method)(*example()[:3], epoch=20)
    got = objective_of(method)(*with_cached_teacher(torch.float16)[:3], epoch=20)
    assert got.total.dtype == torch.float64
    assert_close(got.total, exact.total, rtol=2e-2, atol=0)


def test_a_student_may_bring_its_own() -> None:
    """Local logits with a graph, made by whatever made them."""
    batch = example()
    regions = region_logits(*map_and_head(batch.student))
    student = NetworkOutput(batch.student.logits, regions=regions)
    total = objective_of("icd-nkd")(student, batch.teacher, batch.target, epoch=20).total
    expected = objective_of("icd-nkd")(*batch[:3], epoch=20).total
    assert_close(total, expected)
    leaves = batch.leaves[1:]
    assert_close(torch.autograd.grad(total, leaves), torch.autograd.grad(expected, leaves))


def test_of_other_scales_and_classes() -> None:
    options = {"scales": (1, 3), "num_classes": 3, "student_classes": [1, 2, 8], "teacher_classes": [0, 5, 4]}
    expected = objective_of("icd-kd", **options)(*example()[:3]).total
    assert_close(objective_of("icd-kd", **options)(*with_cached_teacher(scales=(1, 3))[:3]).total, expected)


@pytest.mark.parametrize("method", ["sp", "crd"])
def test_maps_are_still_needed_where_they_are_read(method: str) -> None:
    batch = with_cached_teacher()
    with pytest.raises(ValueError, match=r"teacher.features must be the penultimate map .* for this method, got None"):
        objective_of(method)(*batch[:3], indices=batch.indices)


@pytest.mark.parametrize(
    ("regions", "error", "message"),
    [
        (torch.ones(6, 9, 5), ValueError, r"teacher.regions must have shape \(6, 9, 21\), got \(6, 9, 5\)"),
        (torch.ones(6, 9, 21).long(), TypeError, r"teacher.regions must be a floating torch.Tensor .* got torch.int64"),
        ([1.0], TypeError, "teacher.regions must be a floating torch.Tensor .* got list"),
    ],
)
def test_wrong_ones(regions: Any, error: type[Exception], message: str) -> None:
    batch = example(torch.float32)
    with pytest.raises(error, match=message):
        objective_of("icd-kd")(batch.student, batch.teacher._replace(regions=regions), batch.target)
