"""DKD: KD taken apart into the true class against the rest, and the rest among themselves (arXiv:2203.08679)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from icd_kernels.objectives.common import CommonOptions, check_number, set_checked
from icd_kernels.objectives.released import is_true_class
from icd_kernels.objectives.row_method import RowFactors, RowMethod, StandardizableOptions
from icd_kernels.objectives.rows import binary_kl, kl, split_rows
from icd_kernels.objectives.temperature import softened, squared


@dataclass(frozen=True)
class DKDOptions(StandardizableOptions):
    """DKD's."""

    alpha: float = 1.0
    """Weight of the true class against the rest."""
    beta: float = 2.0
    """Weight of the relations among the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, alpha=check_number("alpha", self.alpha), beta=check_number("beta", self.beta))


def dkd_rows(student: Tensor, teacher: Tensor, target: Tensor, options: DKDOptions) -> Tensor:
    """T² (α TCKD + β NCKD): TCKD is the KL of (true class, all others), NCKD the KL among the others, both softened."""
    q, p = (split_rows(softened(logits, options.temperature), target) for logits in (student, teacher))
    target_kl = binary_kl(q.margin, p.margin)
    others_kl = kl(q.log_others, p.log_others)
    return squared(options.temperature, target_kl) * (options.alpha * target_kl + options.beta * others_kl)


def dkd_factors(options: DKDOptions) -> RowFactors:
    """DKD as the fused operator has it."""
    square = options.temperature**2
    return RowFactors(binary=options.alpha * square, others=options.beta * square)


TRUE_CLASS_PENALTY = 1000.0
"""What the released code subtracts from the true class's logit in place of removing the class."""


def released_dkd_rows(student: Tensor, teacher: Tensor, target: Tensor, options: DKDOptions) -> Tensor:
    """The logarithm of a softmax for TCKD, and for NCKD the true class pushed down by 1000 and kept."""
    is_true = is_true_class(student, target)
    scaled_student, scaled_teacher = (softened(logits, options.temperature) for logits in (student, teacher))
    q, p = (_true_and_rest(F.softmax(logits, dim=1), is_true) for logits in (scaled_student, scaled_teacher))
    target_kl = F.kl_div(q.log(), p, reduction="none").sum(1)
    penalty = TRUE_CLASS_PENALTY * is_true
    log_q = F.log_softmax(scaled_student - penalty, dim=1)
    p_others = F.softmax(scaled_teacher - penalty, dim=1)
    others_kl = F.kl_div(log_q, p_others, reduction="none").sum(1)
    return squared(options.temperature, target_kl) * (options.alpha * target_kl + options.beta * others_kl)


def _true_and_rest(probabilities: Tensor, is_true: Tensor) -> Tensor:
    """The probability of the true class, and the sum of the others': [B, 2, N]."""
    true, rest = (probabilities * is_true).sum(1), (probabilities * (1 - is_true)).sum(1)
    return torch.stack((true, rest), dim=1)


DKD = RowMethod(
    "dkd", CommonOptions(ramp_epochs=20), DKDOptions(), dkd_rows, dkd_factors, released_rows=released_dkd_rows
)
