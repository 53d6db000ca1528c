"""The gate before the clock: a backend whose result is wrong gets no figure.

The judge is the float64 reference. A rival is right when error ≤ 2·eager + TOLERANCE·eps·(1 + rows/abs(loss)): `eager`
is the error of eager PyTorch in the rival's own dtype, `eps` that dtype's rounding, and the last factor holds for the
loss only, which sums the KL of `rows` rows: a KL is a difference of logarithms that need not be small themselves.

An error is one draw of rounding, eager's too: where a gradient is a small difference of large numbers, plain PyTorch in
another order of operations can be ten times as far off. The released formulation is such an order: where it has the
form and the math is in the inputs' dtype, the larger error of the two counts as eager's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.rivals import EAGER, RELEASED, Rival
from benchmarks.workloads import Inputs

RESULTS = ("loss", "student_features", "student_weight", "student_bias")
EAGERS = 2.0
TOLERANCE = 64.0
TOLERANCE_FLOAT64 = 512.0
"""Class form's sum linear in K is a series that is cut off at 1e-13 (docs/linear_class_gram.md)."""


class WrongResultError(AssertionError):
    """A rival is further from the float64 reference than it may be."""


class Truth(NamedTuple):
    """A case small enough to be judged, what the float64 reference makes of it, and how far off eager PyTorch is."""

    case: Case
    inputs: Inputs
    exact: tuple[Tensor, ...]
    eager_errors: dict[str, float]

    @staticmethod
    def of(case: Case, device: str = "cpu") -> Truth:
        case = case.judged()
        inputs = case.inputs(device, seed=1)
        exact = exact_results(inputs, **case.options)
        plain = [EAGER]
        if case.dtype in (torch.float32, torch.float64) and not RELEASED.why_not(case, device):
            plain.append(RELEASED)
        every = [errors(rival.forward_backward(inputs, **case.options)(), exact) for rival in plain]
        return Truth(case, inputs, exact, {name: max(found[name] for found in every) for name in RESULTS})

    def verdict(self, rival: Rival) -> tuple[dict[str, Any], str]:
        """The rival's errors, and what is wrong with them; empty where nothing is."""
        results = rival.forward_backward(self.inputs, **self.case.options)()
        figures: dict[str, Any] = {"errors": errors(results, self.exact)}
        try:
            check(results, self.eager_errors, self.exact, summed_rows=self.case.summed_rows)
        except WrongResultError as error:
            return {**figures, "inexact": str(error)}, str(error)
        return figures, ""


def exact_results(inputs: Inputs, **options: Any) -> tuple[Tensor, ...]:
    """Loss and gradients in float64. Image by image where images do not mix, so that large class Grams fit."""
    precise = Inputs(*(tensor.detach().double() for tensor in inputs))
    for leaf in precise.leaves():
        leaf.requires_grad_()
    batch = inputs.student_features.shape[0]
    chunk = batch if options["gram"] == "sample" else 1
    total = inputs.student_features.new_zeros((), dtype=torch.float64)
    for first in range(0, batch, chunk):
        loss = EAGER.loss(**options)(*precise.images(first, first + chunk)) * (chunk / batch)
        loss.backward()
        total += loss.detach()
    gradients = tuple(leaf.grad for leaf in precise.leaves() if leaf.grad is not None)
    return total, *gradients


def errors(results: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, float]:
    """The largest error of each result, divided by its largest element unless that is 0."""
    return {
        name: float((result.double() - right).abs().max() / _largest(right))
        for name, result, right in zip(RESULTS, results, exact, strict=True)
    }


def check(
    results: Sequence[Tensor], allowed: dict[str, float], exact: Sequence[Tensor], *, summed_rows: int
) -> dict[str, float]:
    """The errors of `results`.

    Raises:
        WrongResultError: one of them is larger than twice eager's (`allowed`) plus the tolerance, or not a number.
    """
    measured = errors(results, exact)
    for name, result, right in zip(RESULTS, results, exact, strict=True):
        roundings = TOLERANCE_FLOAT64 if result.dtype == torch.float64 else TOLERANCE
        rounding = roundings * torch.finfo(result.dtype).eps
        tolerance = rounding * (1 + summed_rows / _largest(right)) if name == "loss" else rounding
        if not measured[name] <= EAGERS * allowed[name] + tolerance:
            raise WrongResultError(
                f"{name}: error {measured[name]:.2e} of the largest element, eager's {allowed[name]:.2e}, "
                f"tolerance {tolerance:.2e}"
            )
    return measured


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) or 1.0
