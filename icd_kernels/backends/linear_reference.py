"""Class form's sums in time linear in K, in plain PyTorch: the method by itself, apart from any kernel.

Not a backend: the compiled ones choose between this method and the exact sum, cell by cell. This file states the method
for reading, gradcheck and comparison with the definition. Derivation and bounds: docs/linear_class_gram.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_NODES = 768
"""A span that needs more Chebyshev nodes than this is left to the exact sum."""


class TooWideError(ValueError):
    """The logits span too much for the method."""


class Rows(NamedTuple):
    """What is known of every row k of one network's Gram z z^T / τ, each (K,)."""

    log_sum: Tensor  # log Σ_j exp(x_k (y_j - top_k))
    own_mean: Tensor  # Σ_j p_kj (y_j - top_k)
    student_mean: Tensor  # Σ_j p_kj s_j
    top: Tensor  # the y of the row's largest entry: max(y) where x_k >= 0, else min(y)


def class_cell(student: Tensor, teacher: Tensor, temperature: float, error: float = 1e-14) -> tuple[Tensor, Tensor]:
    """KL of all rows of one cell's class Gram, and its gradient by the student's logits.

    Args:
        student: (K,) float64.
        teacher: (K,) float64.
        temperature: τ > 0.
        error: bound of the interpolation error of one exponential.

    Returns:
        A scalar and (K,).

    Raises:
        TooWideError: more than :data:`MOST_NODES` nodes would be needed, or a logit is not finite.
    """
    x_student, x_teacher = student / temperature, teacher / temperature
    q = row_moments(x_student, student, student, error)
    p = row_moments(x_teacher, teacher, student, error)
    log_p_over_q = x_teacher * p.own_mean - x_student * (p.student_mean - q.top) + q.log_sum - p.log_sum
    columns = column_sums(x_student, student, q, student, error) - column_sums(x_teacher, teacher, p, student, error)
    return log_p_over_q.sum(), (q.student_mean - p.student_mean + columns) / temperature


def row_moments(x: Tensor, y: Tensor, student: Tensor, error: float) -> Rows:
    """The rows' sums by interpolation in x, on each sign of x by itself."""
    top = torch.where(x >= 0, y.max(), y.min())
    sums = y.new_empty(3, y.numel())
    for side in (x >= 0, x < 0):
        if side.any():
            points, highest = x[side], top[side][0]
            low, high = points.min(), points.max()
            nodes = chebyshev_points(_node_count((high - low) * (y.max() - y.min()), error), low, high)  # [p]
            exponentials = torch.exp(nodes[:, None] * (y - highest))  # [p, K], each at most 1
            factors = torch.stack([torch.ones_like(y), y - highest, student])
            sums[:, side] = interpolate(factors @ exponentials.T, points, low, high)
    return Rows(sums[0].log(), sums[1] / sums[0], sums[2] / sums[0], top)


def column_sums(x: Tensor, y: Tensor, rows: Rows, weights: Tensor, error: float) -> Tensor:
    """Σ_k weights_k softmax(row k)_j for every j, by interpolation in y."""
    low, high = y.min(), y.max()
    nodes = chebyshev_points(_node_count(x.abs().max() * (high - low), error), low, high)
    probabilities = torch.exp(x * (nodes[:, None] - rows.top) - rows.log_sum)  # [p, K], each at most 1
    return interpolate(probabilities @ weights, y, low, high)


def chebyshev_nodes(span: float, error: float) -> int:
    """The smallest multiple of 4 nodes that interpolate e^{-span u}, u in [0, 1], to `error`; 0 where none does.

    With a = span/2 the Chebyshev coefficients are 2 e^{-a} I_n(a), and I_n(a) <= exp(sqrt(a² + n²) - n asinh(n/a)).
    """
    a = span / 2
    if not a < 1e9:
        return 0
    if a < 1e-9:
        return 4
    for n in range(int(math.sqrt(2 * a * math.log(4 / error))) // 4 * 4 + 4, MOST_NODES + 1, 4):
        slope = math.asinh(n / a)
        if 4 * math.exp(math.hypot(a, n) - a - n * slope) / (1 - math.exp(-slope)) <= error:
            return n
    return 0


def chebyshev_points(count: int, low: Tensor, high: Tensor) -> Tensor:
    """The Chebyshev nodes of the first kind on [low, high], (count,)."""
    angles = (torch.arange(count, dtype=low.dtype, device=low.device) + 0.5) * (math.pi / count)
    return (low + high) / 2 + (high - low) / 2 * angles.cos()


def interpolate(values: Tensor, points: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The polynomials through `values` (.., p) at the nodes of [low, high], at `points` (m,): (.., m)."""
    count = values.shape[-1]
    orders = torch.arange(count, dtype=points.dtype, device=points.device)
    angles = (orders + 0.5) * (math.pi / count)
    coefficients = values @ torch.cos(angles[:, None] * orders) * (2 / count)  # [.., p]
    coefficients[..., 0] /= 2
    half = ((high - low) / 2).clamp_min(torch.finfo(points.dtype).tiny)
    u = ((points - (low + high) / 2) / half).clamp(-1, 1)
    return coefficients @ torch.cos(orders[:, None] * torch.acos(u))


def _node_count(span: Tensor, error: float) -> int:
    count = chebyshev_nodes(span.item(), error)
    if count == 0:
        raise TooWideError(
            f"a span of {float(span):.3g} needs more than {MOST_NODES} nodes for an error of {error:.1g}"
        )
    return count
