"""Chebyshev interpolation of sums of exponentials, in float64: docs/linear_class_gram.md."""

import math

import triton
import triton.language as tl

NODE_STEP: tl.constexpr = tl.constexpr(4)  # nodes come in multiples of this, as in csrc/common/chebyshev.h
HALF_PI: tl.constexpr = tl.constexpr(math.pi / 2)


@triton.jit
def node_count(span, error, SPACE: tl.constexpr):
    """The fewest nodes that interpolate e^{-span u}, u in [0, 1], to `error`; 0 where SPACE nodes are too few."""
    a = span / 2
    n = ((1 + tl.arange(0, SPACE // NODE_STEP)) * NODE_STEP).to(tl.float64)
    safe = tl.where(a > 1e-9, a, 1e-9)
    ratio = n / safe
    slope = tl.log(ratio + tl.sqrt(ratio * ratio + 1))  # asinh
    bound = 4 * tl.exp(tl.sqrt(safe * safe + n * n) - safe - n * slope) / (1 - tl.exp(-slope))
    enough = tl.min(tl.where(bound <= error, n, 2.0 * SPACE)).to(tl.int32)
    return tl.where((a < 1e9) & (enough <= SPACE), enough, 0)


@triton.jit
def cosine(numerator, count):
    """cos(π numerator / (2 count)) for integers numerator >= 0."""
    turn = numerator % (4 * count)
    turn = tl.where(turn > 2 * count, 4 * count - turn, turn)
    is_far = turn > count
    turn = tl.where(is_far, 2 * count - turn, turn)
    angle = turn.to(tl.float64) / count * HALF_PI  # [0, π/2]
    square = angle * angle
    total = tl.full(angle.shape, 1.0, tl.float64)
    for k in tl.static_range(11):
        total = 1 - square * total * (1 / ((2 * (11 - k) - 1) * (2 * (11 - k))))
    return tl.where(is_far, -total, total)


@triton.jit
def node_points(o_nodes, count):
    """The nodes of the first kind on [-1, 1]."""
    return cosine(2 * o_nodes + 1, count)


@triton.jit
def store_coefficients(
    p_values, p_coefficients, count, FUNCTIONS: tl.constexpr, SPACE: tl.constexpr, BLOCK: tl.constexpr
):
    """Values [FUNCTIONS, SPACE] at `count` nodes to the coefficients of their interpolants; FUNCTIONS is 1 or 3."""
    for start in range(0, count, BLOCK):
        o_orders = start + tl.arange(0, BLOCK)
        first_total = tl.zeros((BLOCK,), tl.float64)
        second_total = first_total
        third_total = first_total
        for first in range(0, count, BLOCK):
            o_nodes = first + tl.arange(0, BLOCK)
            table = cosine(o_orders[:, None] * (2 * o_nodes + 1)[None, :], count)
            first_total += _times_values(table, p_values, o_nodes, count)
            if FUNCTIONS == 3:
                second_total += _times_values(table, p_values + SPACE, o_nodes, count)
                third_total += _times_values(table, p_values + 2 * SPACE, o_nodes, count)
        share = tl.where(o_orders == 0, 1.0, 2.0).to(tl.float64) / count
        tl.store(p_coefficients + o_orders, first_total * share, mask=o_orders < count)
        if FUNCTIONS == 3:
            tl.store(p_coefficients + SPACE + o_orders, second_total * share, mask=o_orders < count)
            tl.store(p_coefficients + 2 * SPACE + o_orders, third_total * share, mask=o_orders < count)


@triton.jit
def _times_values(table, p_values, o_nodes, count):
    """Σ_i table_{n i} values_i"""
    values = tl.load(p_values + o_nodes, mask=o_nodes < count, other=0.0)
    return tl.sum(table * values[None, :], axis=1)
