"""KD: the teacher's softened probabilities are the student's target (Hinton et al., arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from icd_kernels.objectives.common import CommonOptions
from icd_kernels.objectives.row_method import RowFactors, RowMethod, StandardizableOptions
from icd_kernels.objectives.rows import kl
from icd_kernels.objectives.temperature import softened, squared


@dataclass(frozen=True)
class KDOptions(StandardizableOptions):
    """KD's."""


def kd_rows(student: Tensor, teacher: Tensor, target: Tensor, options: KDOptions) -> Tensor:
    """T² KL(teacher ‖ student) of the softened logits; reads no target."""
    log_q, log_p = (F.log_softmax(softened(logits, options.temperature), dim=1) for logits in (student, teacher))
    return squared(options.temperature, log_q) * kl(log_q, log_p)


def kd_factors(options: KDOptions) -> RowFactors:
    """KD as the fused operator has it."""
    return RowFactors(whole=options.temperature**2)


KD = RowMethod(
    "kd", CommonOptions(ce_weight=0.1, base_weight=0.9), KDOptions(), kd_rows, kd_factors, reads_target=False
)
