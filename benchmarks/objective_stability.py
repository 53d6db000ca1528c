"""`python -m benchmarks.objective_stability`: what large logits make of each base loss, ours and as released.

Rows are those of a confident student that is wrong: its true class far below the others, the teacher's far above. A
cell is the largest finite loss of 20 rows, how many are not finite, and how many of their 200 gradients. The released
code puts 0 in place of NaN; here its formulas are seen before that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from icd_kernels import sdd_loss
from icd_kernels.objectives.sdd import ROW_METHODS

SIZES = (1.0, 30.0, 1e3, 1e4)
DTYPES = (torch.float16, torch.float32)


class Row(NamedTuple):
    """A line of the table."""

    base: str
    size: float
    dtype: torch.dtype
    ours: str
    ours_is_finite: bool
    """Loss and gradient."""
    released: str


def hard_rows(size: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits (4, 10, 5) of about `size`, and targets that the student is sure are wrong."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (size * torch.randn(4, 10, 5, generator=generator).clamp(-1, 1) for _ in range(2))
    target = torch.tensor([3, 0, 9, 5])
    student.scatter_(1, target[:, None, None].expand(-1, 1, 5), -size)
    teacher.scatter_(1, target[:, None, None].expand(-1, 1, 5), size)
    return student.to(dtype), teacher.to(dtype), target


def table() -> list[Row]:
    """Every base at every size and dtype."""
    return [_row(base, size, dtype) for base in ROW_METHODS for size in SIZES for dtype in DTYPES]


def _row(base: str, size: float, dtype: torch.dtype) -> Row:
    student, teacher, target = hard_rows(size, dtype)
    regions = student.shape[2]
    student, teacher = (logits.movedim(2, 1).flatten(0, 1)[:, :, None] for logits in (student, teacher))  # [20, 10, 1]
    target = target.repeat_interleave(regions)
    student.requires_grad_()
    ours = sdd_loss(student, teacher, target, base=base, reduction="none")
    gradient = torch.autograd.grad(ours.sum(), student)[0]
    is_finite = bool(ours.isfinite().all() and gradient.isfinite().all())
    method = ROW_METHODS[base]
    formula = method.released_rows or method.rows
    released = formula(student, teacher, target, method.defaults(is_local=True))
    released_gradient = torch.autograd.grad(released.sum(), student)[0]
    return Row(base, size, dtype, _cell(ours, gradient), is_finite, _cell(released, released_gradient))


def _cell(loss: Tensor, gradient: Tensor) -> str:
    bad = [
        f"{int(found.sum())} {name}" for name, found in (("NaN", loss.isnan()), ("inf", loss.isinf())) if found.any()
    ]
    finite = loss[loss.isfinite()]
    shown = f"up to {finite.max().item():.4g}" if finite.numel() else "no finite row"
    broken = int((~gradient.isfinite()).sum())
    return ", ".join([shown, *bad, *([f"{broken} of {gradient.numel()} gradients not finite"] if broken else [])])


def main() -> None:
    print("| base | logits | dtype | ours | released formula in that dtype |\n|---|---|---|---|---|")
    for row in table():
        dtype = str(row.dtype).removeprefix("torch.")
        print(f"| {row.base.upper()} | ±{row.size:g} | {dtype} | {row.ours} | {row.released} |")


if __name__ == "__main__":
    main()
