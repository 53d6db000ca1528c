"""NKD: the true class by the teacher's trust in it, and the other classes among themselves (arXiv:2303.13005)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from icd_kernels.objectives.common import CommonOptions, check_number, set_checked
from icd_kernels.objectives.released import is_true_class
from icd_kernels.objectives.row_method import RowFactors, RowMethod, RowOptions
from icd_kernels.objectives.rows import split_rows
from icd_kernels.objectives.temperature import softened, squared


@dataclass(frozen=True)
class NKDOptions(RowOptions):
    """NKD's."""

    temperature: Any = 1.0
    gamma: float = 1.5
    """Weight of the relations among the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, gamma=check_number("gamma", self.gamma))


def nkd_rows(student: Tensor, teacher: Tensor, target: Tensor, options: NKDOptions) -> Tensor:
    """-p_t(y) log p_s(y) - γ T² Σ_{i≠y} p̂_t(i) log p̂_s(i).

    p is the softmax at temperature 1, p̂ that of the other classes among themselves at temperature T.
    """
    q, p = (split_rows(logits, target) for logits in (student, teacher))
    target_term = p.margin.sigmoid() * F.logsigmoid(q.margin)
    if isinstance(options.temperature, Tensor) or options.temperature != 1:
        q, p = (split_rows(softened(logits, options.temperature), target) for logits in (student, teacher))
    others_term = (p.log_others.exp() * q.log_others).sum(1)
    return -(target_term + options.gamma * squared(options.temperature, others_term) * others_term)


def nkd_factors(options: NKDOptions) -> RowFactors:
    """NKD as the fused operator has it: a cross-entropy is a KL and the target's entropy."""
    factor = options.gamma * options.temperature**2
    return RowFactors(others=factor, entropy=factor, target=1.0)


def released_nkd_rows(student: Tensor, teacher: Tensor, target: Tensor, options: NKDOptions) -> Tensor:
    """The mask of the other classes removes none: the second term runs over all K, the true one included."""
    is_true = is_true_class(student, target)
    target_term = ((F.softmax(teacher, dim=1) * F.log_softmax(student, dim=1)) * is_true).sum(1)
    q, p = (softened(logits, options.temperature) for logits in (student, teacher))
    every_class = F.softmax(p, dim=1) * F.log_softmax(q, dim=1)
    return -(target_term + options.gamma * squared(options.temperature, target_term) * every_class.sum(1))


NKD = RowMethod(
    "nkd",
    CommonOptions(ramp_epochs=20),
    NKDOptions(),
    nkd_rows,
    nkd_factors,
    local_options=NKDOptions(temperature=4.0, gamma=2.0),
    released_rows=released_nkd_rows,
)
