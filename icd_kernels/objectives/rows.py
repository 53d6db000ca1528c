"""The math that row losses share: rows of logits, cut around the true class, and divergences in log space.

A row is one image's logits over the K classes, of the whole image or of one region: student and teacher are (B, K, N),
a target (B,) holds class indices, a loss is (B, N). The teacher is a constant; the caller detaches it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from icd_kernels.options import NORM_FLOOR


class SplitRows(NamedTuple):
    """A row cut around its true class, which needs no mask and leaves K - 1 numbers.

    With K = 2 one class is left: its probability is 1 whatever the logits, so what is computed among the others is 0.
    The same holds where all others are masked: beside classes.MASKED, log_others rounds to 0.
    """

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


def standardized(logits: Tensor, masked: Tensor | None) -> Tensor:
    """Rows (B, K, N) less their mean over K, divided by their standard deviation (Sun et al., arXiv:2403.01427).

    Masked classes count in neither, and are 0.
    """
    count: int | Tensor = logits.shape[1]
    if masked is not None:
        count = (~masked).sum(1, keepdim=True)
        logits = logits.masked_fill(masked, 0.0)
    centred = logits - logits.sum(1, keepdim=True) / count
    if masked is not None:
        centred = centred.masked_fill(masked, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / variance.clamp_min(NORM_FLOOR**2).sqrt()
