"""KD, DKD and NKD of one logit vector: per-row losses, in log space throughout.

A row is one image's logits over the K classes, of the whole image or of one region: student and teacher are (B, K, N),
`target` (B,) holds class indices, the result is (B, N). The teacher is a constant; the caller detaches it.

DKD and NKD speak of the classes other than the true one. Here it is really taken out: the row is cut around it, which
needs no mask, no -inf and no subtracted constant, and leaves K - 1 numbers. With K = 2 one class is left, its
probability is 1 whatever the logits, and the term over the other classes is 0 with gradient 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RowSettings(NamedTuple):
    """What the row losses depend on; each reads its own."""

    temperature: float = 4.0
    alpha: float = 1.0
    """DKD's weight of the true class against the rest."""
    beta: float = 2.0
    """DKD's weight of the relations among the rest."""
    gamma: float = 2.0
    """NKD's weight of the relations among the rest."""


RowLoss = Callable[[Tensor, Tensor, Tensor, RowSettings], Tensor]


def kd_rows(student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """T² KL(teacher ‖ student) of the softened logits (Hinton et al., arXiv:1503.02531); reads no target."""
    temperature = settings.temperature
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * kl(log_q, log_p)


def dkd_rows(student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """T² (α TCKD + β NCKD) (Zhao et al., arXiv:2203.08679).

    TCKD is the KL of (true class, all others), NCKD the KL among the others, both softened.
    """
    q, p = (split_rows(logits / settings.temperature, target) for logits in (student, teacher))
    target_kl = binary_kl(q.margin, p.margin)
    others_kl = kl(q.log_others, p.log_others)
    return settings.temperature**2 * (settings.alpha * target_kl + settings.beta * others_kl)


def nkd_rows(student: Tensor, teacher: Tensor, target: Tensor, settings: RowSettings) -> Tensor:
    """-p_t(y) log p_s(y) - γ T² Σ_{i≠y} p̂_t(i) log p̂_s(i) (Yang et al., arXiv:2303.13005).

    p is the softmax at temperature 1, p̂ that of the other classes among themselves at temperature T.
    """
    q, p = (split_rows(logits, target) for logits in (student, teacher))
    target_term = p.margin.sigmoid() * F.logsigmoid(q.margin)
    if settings.temperature != 1:
        q, p = (split_rows(logits / settings.temperature, target) for logits in (student, teacher))
    others_term = (p.log_others.exp() * q.log_others).sum(1)
    return -(target_term + settings.gamma * settings.temperature**2 * others_term)


ROW_LOSSES: dict[str, RowLoss] = {"kd": kd_rows, "dkd": dkd_rows, "nkd": nkd_rows}


class SplitRows(NamedTuple):
    """A row cut around its true class."""

    margin: Tensor
    """[B, N]: log-odds of the true class, its logit less the logsumexp of the others."""
    log_others: Tensor
    """[B, K-1, N]: log-probability of each other class, given that it is not the true one."""


def split_rows(logits: Tensor, target: Tensor) -> SplitRows:
    """Cuts the rows of logits (B, K, N) around each image's class `target` (B,)."""
    index = target[:, None, None]  # [B, 1, 1]
    true = logits.gather(1, index.expand(-1, 1, logits.shape[2])).squeeze(1)  # [B, N]
    classes = torch.arange(logits.shape[1] - 1, device=logits.device)[None, :, None]
    others = torch.where(classes < index, logits[:, :-1], logits[:, 1:])  # [B, K-1, N]
    log_others_sum = others.logsumexp(1)
    return SplitRows(true - log_others_sum, others - log_others_sum[:, None])


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p ‖ q) over dimension 1 of log-probabilities."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def binary_kl(margin_q: Tensor, margin_p: Tensor) -> Tensor:
    """KL(p ‖ q) of two outcomes whose log-odds are given: p(1) = sigmoid(margin_p)."""
    at_true = margin_p.sigmoid() * (F.logsigmoid(margin_p) - F.logsigmoid(margin_q))
    return at_true + (-margin_p).sigmoid() * (F.logsigmoid(-margin_p) - F.logsigmoid(-margin_q))
