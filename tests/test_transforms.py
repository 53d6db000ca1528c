"""torch.func: the reference takes every transform, the fused backends say that they take none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import COMPILED, Case
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import gram_kl, icd_loss, region_features, region_logits, sdd_loss


def computations(backend: str) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Functions of one tensor to a scalar, and the tensor."""
    case = Case()
    tensors = case.tensors()
    logits = case.local_logits()
    student = tensors.student_features

    def loss(features: Tensor) -> Tensor:
        return icd_loss(
            features, tensors.student_weight, tensors.teacher_features, tensors.teacher_weight, backend=backend
        )

    def features(x: Tensor) -> Tensor:
        return region_features(x, backend=backend).square().sum()

    def regions(x: Tensor) -> Tensor:
        return region_logits(x, tensors.student_weight, backend=backend).square().sum()

    def divergence(x: Tensor) -> Tensor:
        return gram_kl(x, logits[1], backend=backend)

    def rows(x: Tensor) -> Tensor:
        return sdd_loss(x, logits[1], torch.zeros(len(x), dtype=torch.int64), backend=backend)

    return {
        "icd_loss": (loss, student),
        "region_features": (features, student),
        "region_logits": (regions, student),
        "gram_kl": (divergence, logits[0]),
        "sdd_loss": (rows, logits[0]),
    }


NAMES = list(computations("reference"))


@pytest.mark.parametrize("name", NAMES)
class TestReference:
    def test_grad_is_autograds(self, name: str) -> None:
        function, tensor = computations("reference")[name]
        leaf = tensor.clone().requires_grad_()
        assert_close(torch.func.grad(function)(tensor), torch.autograd.grad(function(leaf), leaf)[0])

    def test_vmap_of_grad(self, name: str) -> None:
        function, tensor = computations("reference")[name]
        stacked = torch.stack((tensor, 2 * tensor))
        expected = torch.stack([torch.func.grad(function)(each) for each in stacked])
        assert_close(torch.func.vmap(torch.func.grad(function))(stacked), expected)

    def test_jvp_is_a_directional_derivative(self, name: str) -> None:
        function, tensor = computations("reference")[name]
        direction = torch.randn_like(tensor)
        tangent = torch.func.jvp(function, (tensor,), (direction,))[1]
        assert_close(tangent, (torch.func.grad(function)(tensor) * direction).sum())


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": torch.func.grad,
    "jacrev": torch.func.jacrev,
    "vmap of grad": lambda function: lambda x: torch.func.vmap(torch.func.grad(function))(torch.stack((x, x))),
    "jvp": lambda function: lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", COMPILED)
def test_fused_backends_refuse(backend: str, name: str, transform: str) -> None:
    """They raise an error that says why: never 0, and never PyTorch's own error, which does not."""
    function, tensor = computations(backend)[name]
    message = "no forward-mode derivative" if transform == "jvp" else "do not run within torch.func"
    with pytest.raises(RuntimeError, match=rf"icd_kernels: .*{message}.*backend='reference'"):
        TRANSFORMS[transform](function)(tensor)
