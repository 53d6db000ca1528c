"""Row divergences that keep their digits when student and teacher agree."""

import triton
import triton.language as tl

CLOSE_ROWS: tl.constexpr = tl.constexpr(3e-2)
"""Row KL below which it is summed term by term; above, float32 differences will do."""


@triton.jit
def has_close_rows(kl, m_rows):
    """Whether any of these rows' KL is so small, or rounded below zero, that its digits are lost."""
    return tl.min(tl.where(m_rows, kl, 1.0)) < CLOSE_ROWS


@triton.jit
def kl_terms(log_p, log_q, p, q):
    """Terms of KL(p ‖ q) = Σ p (e^δ - 1 - δ), δ = log q - log p: each is positive, so that nothing cancels.

    Both sides sum to 1, so this is Σ p (log p - log q). Near δ = 0 by the series, elsewhere as q - p - p δ, which does
    not overflow.
    """
    near: tl.constexpr = 0.06 if log_p.dtype == tl.float64 else 0.5  # what nine terms of the series are exact to
    delta = log_q - log_p
    series = 1 + delta * (1 / 8) * (1 + delta * (1 / 9))
    series = 1 + delta * (1 / 6) * (1 + delta * (1 / 7) * series)
    series = 1 + delta * (1 / 4) * (1 + delta * (1 / 5) * series)
    series = delta * delta * (1 / 2) * (1 + delta * (1 / 3) * series)
    return tl.where(tl.abs(delta) < near, p * series, q - p - p * delta)
