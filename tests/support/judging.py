"""When a backend is right: its error against the float64 reference is no larger than that of eager PyTorch.

Eager PyTorch is the reference run in the inputs' own dtypes. Rounding depends on the order of sums, which a backend may
choose, so eager's error is the largest over a few orders: the same loss with classes, channels and pixels in another
order, which change nothing in exact arithmetic. To that a small tolerance is added: `TOLERANCE` roundings of the math's
dtype of the result's terms before they cancel (:mod:`rounding`), and one rounding to a gradient's own dtype. float64
gets more of them, 1e-12: there the reference is no more exact than what it judges, and class form linear in the classes
is worked to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import STUDENT, Case, Tensors, loss_of, torch_threads
from rounding import gram_kl_terms, region_logits_terms
from torch import Tensor

from icd_kernels import gram_kl, region_logits

TOLERANCE = {torch.float32: 4.0, torch.float64: 4096.0}
ORDERS = 2

Inputs = tuple[Any, ...]
"""Tensors, or None where a bias is left out."""


@dataclass(frozen=True)
class Problem:
    """A computation, its inputs by name, and how the inputs can be rearranged without changing the exact result."""

    names: tuple[str, ...]
    inputs: Inputs
    wanted: tuple[str, ...]
    """The inputs whose gradients are compared."""
    compute: Callable[[Inputs, str], Tensor]
    rearranged: Callable[[Inputs, torch.Generator], Inputs]
    terms: Callable[[Inputs, Tensor], dict[str, Tensor]]
    """Inputs and upstream gradient to the terms of the result and of each gradient."""

    def on(self, device: str) -> Problem:
        return replace(self, inputs=tuple(None if x is None else x.to(device) for x in self.inputs))

    def in_float64(self) -> Problem:
        return replace(self, inputs=tuple(None if x is None else x.double() for x in self.inputs))


Outcome = dict[str, Tensor]
"""The result, under "result", and the gradients under their inputs' names."""


def icd_loss_problem(case: Case, wanted: Sequence[str] = STUDENT) -> Problem:
    regions, rest = _split_options(case)

    def compute(inputs: Inputs, backend: str) -> Tensor:
        return loss_of(Tensors(*inputs), backend, **case.options)

    def terms(inputs: Inputs, upstream: Tensor) -> dict[str, Tensor]:
        student = region_logits(*inputs[:3], backend="reference", **regions)
        teacher = region_logits(*inputs[3:], backend="reference", **regions)
        result, logits = gram_kl_terms(student, teacher, cotangent=upstream, **rest)
        gradients = region_logits_terms(*inputs[:3], cotangent=logits, **regions)
        return {"result": result, **{f"student_{name}": value for name, value in gradients.items()}}

    return Problem(Tensors._fields, case.tensors(), tuple(wanted), compute, _rearranged_networks, terms)


def region_logits_problem(case: Case) -> Problem:
    options, _ = _split_options(case)
    names = ("features", "weight", "bias")

    def compute(inputs: Inputs, backend: str) -> Tensor:
        return region_logits(*inputs, backend=backend, **options)

    def rearranged(inputs: Inputs, generator: torch.Generator) -> Inputs:
        return *_other_channels(inputs[0], inputs[1], generator), inputs[2]

    def terms(inputs: Inputs, upstream: Tensor) -> dict[str, Tensor]:
        return region_logits_terms(*inputs, cotangent=upstream, **options)

    return Problem(names, case.tensors()[:3], names, compute, rearranged, terms)


def gram_kl_problem(case: Case) -> Problem:
    _, options = _split_options(case)
    names = ("student_logits", "teacher_logits")

    def compute(inputs: Inputs, backend: str) -> Tensor:
        return gram_kl(*inputs, backend=backend, **options)

    def rearranged(inputs: Inputs, generator: torch.Generator) -> Inputs:
        classes = torch.randperm(case.classes, generator=generator)
        return tuple(None if logits is None else logits[:, classes.to(logits.device)] for logits in inputs)

    def terms(inputs: Inputs, upstream: Tensor) -> dict[str, Tensor]:
        result, gradient = gram_kl_terms(*inputs, cotangent=upstream, **options)
        return {"result": result, "student_logits": gradient}

    return Problem(names, case.local_logits(), names[:1], compute, rearranged, terms)


def _split_options(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `region_logits` and those of `gram_kl`."""
    regions = {name: value for name, value in case.options.items() if name in ("scales", "pyramid")}
    return regions, {name: value for name, value in case.options.items() if name != "pyramid"}


def assert_no_worse_than_eager(problem: Problem, backend: str, *, threads: int = 1) -> None:
    """The rule, for the result and every gradient asked for."""
    exact_problem = problem.in_float64()
    exact = outcome(exact_problem, "reference")
    eager = [outcome(problem, "reference", order) for order in (None, *range(ORDERS))]
    terms = problem.terms(exact_problem.inputs, cotangent(exact["result"]))
    with torch_threads(threads):
        got = outcome(problem, backend)
    assert got.keys() == exact.keys()
    math_dtype = eager[0]["result"].dtype
    eps = torch.finfo(math_dtype).eps
    for name, value in got.items():
        assert value.dtype == eager[0][name].dtype, f"{name}: {value.dtype}, expected {eager[0][name].dtype}"
        assert value.shape == exact[name].shape, f"{name}: {tuple(value.shape)}, expected {tuple(exact[name].shape)}"
        assert not value[~exact[name].isfinite()].isfinite().any(), f"{name}: finite where the exact one is not"
        largest = _largest(exact[name])
        tolerance = TOLERANCE[math_dtype] * eps * _largest(terms[name]) + _own_rounding(value.dtype, eps) * largest
        assert math.isfinite(tolerance), f"{name}: nothing to judge by"
        error, eager_error = _error(value, exact[name]), max(_error(other[name], exact[name]) for other in eager)
        assert error <= eager_error + tolerance, (
            f"{name}: error {error:.3g}, eager's {eager_error:.3g}, tolerance {tolerance:.3g}, largest {largest:.3g}"
        )


def outcome(problem: Problem, backend: str, order: int | None = None) -> Outcome:
    """Result and gradients of `problem`; with `order`, of a rearrangement of it, gradients in the original order."""
    leaves = [None if tensor is None else tensor.detach() for tensor in problem.inputs]
    wanted = {
        name: leaf.requires_grad_()
        for name, leaf in zip(problem.names, leaves, strict=True)
        if leaf is not None and name in problem.wanted
    }
    inputs: Inputs = tuple(leaves)
    if order is not None:
        inputs = problem.rearranged(inputs, torch.Generator().manual_seed(order))
    result = problem.compute(inputs, backend)
    gradients = torch.autograd.grad(result, list(wanted.values()), cotangent(result))
    return {"result": result.detach(), **dict(zip(wanted, gradients, strict=True))}


def cotangent(result: Tensor) -> Tensor:
    """An upstream gradient of both signs, the same values whatever the dtype."""
    values = torch.randn(result.shape, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    return values.to(result)


def _rearranged_networks(inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Classes of both, and channels and pixels of each, in another order."""
    student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias = inputs
    assert student_weight is not None
    classes = torch.randperm(student_weight.shape[0], generator=generator).to(student_weight.device)
    rearranged: list[Tensor | None] = []
    for features, weight, bias in (
        (student_features, student_weight, student_bias),
        (teacher_features, teacher_weight, teacher_bias),
    ):
        features, weight = _other_channels(features, weight, generator)
        rearranged += [features.flip(2, 3), weight[classes], None if bias is None else bias[classes]]
    return tuple(rearranged)


def _other_channels(
    features: Tensor | None, weight: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    assert features is not None
    assert weight is not None
    channels = torch.randperm(features.shape[1], generator=generator).to(features.device)
    return features[:, channels], weight[:, channels]


def _own_rounding(dtype: torch.dtype, math_eps: float) -> float:
    eps = torch.finfo(dtype).eps
    return eps if eps > math_eps else 0.0


def _error(value: Tensor, exact: Tensor) -> float:
    """The largest absolute error; infinite where the value is not finite and the exact one, so rounded, is."""
    representable = exact.to(value.dtype).isfinite()
    difference = (value.double() - exact).abs()[representable]
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def _largest(exact: Tensor) -> float:
    return float(exact.abs().max()) if exact.numel() else 0.0
