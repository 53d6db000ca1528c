"""The Triton backend: one launch forward, one backward (two for gram "sample" with reduction "none").

A listing of the design: `operators` name the computations; `icd_loss`, `region_features`, `region_logits`, `gram_kl`
and `backward` launch them; `kernels` are the order of each launch's tasks (`chained`: as three launches), made of
`tasks`, `pool`, `project`, `logits` (sum, average, normalise) and `gram_stage`, this of `class_gram` (`exact_class`
with `exponential`, or `linear_class` with `chebyshev`), `spatial_task` (`resident_gram`, one tile, or `points_gram`,
many), `sample_task`, `divergence` (small KLs), `fold` and `finish` (the images that are done); the backward of
`cell_gradient`, `weight_gradient` (both read dl/dz by `upstream`) and `unpool`. Launchers are made of `plan` (what a
call needs but tensors) from `plan_parts` (sizes and workspace) and `configs` (block sizes by shape), `work` (what the
Gram stage works on), `counters`, `structs` (groups of arguments), `forms` (numbers that kernels compare) and `launch`
(with `native`, by the compiled extension).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from icd_kernels.backends.base import Backend, operator_backend
from icd_kernels.backends.triton.operators import OPERATORS, interprets, register

OLDEST = (3, 6)
"""The oldest Triton the kernels are tested with."""

_HOW = "pip install 'triton>=3.6' (the CUDA and ROCm builds of torch bring theirs)"
_DISTRIBUTIONS = ("triton", "pytorch-triton-rocm", "pytorch-triton", "triton-rocm", "triton-windows")


def _missing() -> str | None:
    """None, or what is missing and how to get it. Does not import Triton."""
    if find_spec("triton") is None:
        return f"Triton is not installed: {_HOW}"
    found = _triton_version()
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        return f"it needs Triton {'.'.join(map(str, OLDEST))} or newer, found {found}: {_HOW}"
    return None


def _triton_version() -> str:
    for distribution in _DISTRIBUTIONS:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    import triton

    return str(triton.__version__)


_MISSING = _missing()
LIBRARY = register() if _MISSING is None else None

TRITON: Backend = operator_backend(
    "triton", ("cuda", "cpu") if interprets() else ("cuda",), _MISSING, OPERATORS, only_by_name=("cpu",)
)
"""On CPU tensors Triton's interpreter runs it, for tests, where TRITON_INTERPRET=1; "auto" never takes that."""
