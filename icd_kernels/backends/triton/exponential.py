"""Powers of two, sums of products and runs of numbers as the hardware has them."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.operators import interprets

INTERPRETS: tl.constexpr = tl.constexpr(interprets())
LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def exp2(x, PTX: tl.constexpr):
    """2^x; with PTX in one instruction, results below float32's normal numbers being 0: Triton's own keeps those, at
    the price of a comparison and two products around every exponential."""
    if PTX:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        power = tl.exp2(x)
    return power


@triton.jit
def multiply_add(x, y, z):
    """x y + z, rounded once; by float64 in Triton's interpreter, whose `fma` rounds twice."""
    if INTERPRETS:  # noqa: SIM108 - Triton compiles both sides of a conditional expression
        total = (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(x.dtype)
    else:
        total = tl.fma(x, y, z)
    return total


@triton.jit
def power_of_two(x):
    """x rounded to a power of two."""
    shift: tl.constexpr = 2.0**23 if x.dtype == tl.float32 else 2.0**52
    return (x + x * shift) - x * shift


@triton.jit
def load_4(p_values, PTX: tl.constexpr):
    """Four numbers that every thread reads, from a multiple of 16 bytes on; with PTX in one instruction, where Triton's
    own code takes four."""
    if PTX:
        values = tl.inline_asm_elementwise(
            "ld.global.v4.f32 {$0, $1, $2, $3}, [$4];", "=f,=f,=f,=f,l", [p_values],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=1,
        )  # fmt: skip
    else:
        values = tl.load(p_values), tl.load(p_values + 1), tl.load(p_values + 2), tl.load(p_values + 3)
    return values
