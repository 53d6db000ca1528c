"""What the authors' released code does to every base loss: what becomes NaN is replaced by zero.

For comparison, behind `released`; docs/objectives.md lists every difference. The formulas that differ stand in the
methods' own files. The replaced term is computed a second time on zeros, so that the gradient there is zero too and no
value has to be read by the host.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from icd_kernels.objectives.row_method import RowLoss


def rows_without_nan(loss: RowLoss, student: Tensor, teacher: Tensor, target: Tensor, options: Any) -> Tensor:
    """Every row's loss (B, N), with 0 in place of NaN. Logits (B, K, N), class indices (B,)."""
    with torch.no_grad():
        is_nan = loss(student, teacher, target, options).isnan()  # [B, N]
    safe_student, safe_teacher = (logits.masked_fill(is_nan[:, None], 0.0) for logits in (student, teacher))
    return loss(safe_student, safe_teacher, target, options).masked_fill(is_nan, 0.0)


def without_nan(loss: Tensor) -> Tensor:
    """0 in place of a NaN loss."""
    return loss.masked_fill(loss.isnan(), 0.0)


def is_true_class(logits: Tensor, target: Tensor) -> Tensor:
    """One-hot of the true class, [B, K, 1]."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (classes == target[:, None]).to(logits.dtype)[:, :, None]
