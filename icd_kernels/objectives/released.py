"""The base losses as the authors' released code computes them, its faults included: for comparison, behind `released`.

Restated from a description of what that code does (docs/objectives.md lists every difference). Two faults are kept as
faults: probabilities are made before their logarithm, and what becomes NaN is replaced by zero. The replaced term is
computed a second time on zeros, so that the gradient there is zero too and no value has to be read by the host.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icd_kernels.objectives.rows import RowLoss, RowSettings, kd_rows

TRUE_CLASS_PENALTY = 1000.0
"""What DKD subtracts from the true class's logit in place of removing the class."""


def rows(base: str, student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """Every row's loss (B, N), with 0 in place of NaN. Logits (B, K, N), class indices (B,)."""
    loss = ROW_LOSSES[base]
    with torch.no_grad():
        is_nan = loss(student, teacher, target, settings).isnan()  # [B, N]
    safe_student, safe_teacher = (logits.masked_fill(is_nan[:, None], 0.0) for logits in (student, teacher))
    return loss(safe_student, safe_teacher, target, settings).masked_fill(is_nan, 0.0)


def without_nan(loss: Tensor) -> Tensor:
    """0 in place of a NaN loss."""
    return loss.masked_fill(loss.isnan(), 0.0)


def dkd_rows(student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """DKD: the logarithm of a softmax for TCKD, and for NCKD the true class pushed down by 1000 and kept."""
    temperature = settings.temperature
    is_true = _is_true(student, target)
    q, p = (_true_and_rest(F.softmax(logits / temperature, dim=1), is_true) for logits in (student, teacher))
    target_kl = F.kl_div(q.log(), p, reduction="none").sum(1)
    penalty = TRUE_CLASS_PENALTY * is_true
    log_q = F.log_softmax(student / temperature - penalty, dim=1)
    p_others = F.softmax(teacher / temperature - penalty, dim=1)
    others_kl = F.kl_div(log_q, p_others, reduction="none").sum(1)
    return temperature**2 * (settings.alpha * target_kl + settings.beta * others_kl)


def nkd_rows(student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """NKD whose mask of the other classes removes none: the second term runs over all K, the true one included."""
    temperature = settings.temperature
    is_true = _is_true(student, target)
    target_term = ((F.softmax(teacher, dim=1) * F.log_softmax(student, dim=1)) * is_true).sum(1)
    every_class = F.softmax(teacher / temperature, dim=1) * F.log_softmax(student / temperature, dim=1)
    return -(target_term + settings.gamma * temperature**2 * every_class.sum(1))


def _is_true(logits: Tensor, target: Tensor) -> Tensor:
    """One-hot of the true class, [B, K, 1]."""
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (classes == target[:, None]).to(logits.dtype)[:, :, None]


def _true_and_rest(probabilities: Tensor, is_true: Tensor) -> Tensor:
    """The probability of the true class, and the sum of the others': [B, 2, N]."""
    true, rest = (probabilities * is_true).sum(1), (probabilities * (1 - is_true)).sum(1)
    return torch.stack((true, rest), dim=1)


ROW_LOSSES: dict[str, RowLoss] = {"kd": kd_rows, "dkd": dkd_rows, "nkd": nkd_rows}
