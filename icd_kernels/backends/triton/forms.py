"""The numbers of Grams and reductions (icd_kernels/problem.py), as kernels compare them."""

import triton.language as tl

from icd_kernels import problem

CLASS: tl.constexpr = tl.constexpr(problem.CLASS)
SPATIAL: tl.constexpr = tl.constexpr(problem.SPATIAL)
SAMPLE: tl.constexpr = tl.constexpr(problem.SAMPLE)
MEAN: tl.constexpr = tl.constexpr(problem.MEAN)
NONE: tl.constexpr = tl.constexpr(problem.NONE)
