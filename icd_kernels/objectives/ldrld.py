"""LDRLD: relations among the student's likeliest classes, pair by pair, and the rest (Xu et al., arXiv:2507.15911)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.rows import binary_kl, kl
from icd_kernels.objectives.targets import reduced


class LDRLDTerm(nn.Module):
    """α T² Σ_c w_c KL_c / (k(k-1)/2 + 1) + β T² KL_rest, per image.

    c runs over every pair of the student's k likeliest classes and over all k together; KL_c and KL_rest are the KL of
    the softmax among those classes alone. A pair of ranks i < j, counted from 1, weighs
    w_ij = 2 e^(-0.05 (i+j)) / (1.5 + |i-j|), all k together weigh 1; the rest are the other K - k classes.
    With K ≤ k every class is among the likeliest; with K ≤ k + 1 the rest have no relations: KL_rest = 0. Reads no
    target. Ties between the student's logits go to the lower class.
    """

    def __init__(self, top_k: int, temperature: float, alpha: float, beta: float) -> None:
        super().__init__()
        self.top_k = top_k
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        order = batch.student.logits.detach().argsort(dim=1, descending=True, stable=True)  # [B, K]
        student, teacher = (view.logits.gather(1, order) / self.temperature for view in (batch.student, batch.teacher))
        count = min(self.top_k, order.shape[1])
        (top_s, rest_s), (top_t, rest_t) = ((z[:, :count], z[:, count:]) for z in (student, teacher))
        pairs = binary_kl(top_s[:, :, None] - top_s[:, None], top_t[:, :, None] - top_t[:, None])  # [B, k, k]
        weighted = (pairs * pair_weights(count, pairs)).sum((1, 2)) + _among(top_s, top_t)
        per_image = self.alpha / (count * (count - 1) / 2 + 1) * weighted + self.beta * _among(rest_s, rest_t)
        return reduced(self.temperature**2 * per_image, reduction)


def pair_weights(count: int, like: Tensor) -> Tensor:
    """w_ij above the diagonal and 0 elsewhere, (k, k), of the dtype and device of `like`."""
    rank = torch.arange(1, count + 1, dtype=like.dtype, device=like.device)
    i, j = rank[:, None], rank[None]
    return (2 * torch.exp(-0.05 * (i + j)) / (1.5 + (i - j).abs())).triu(1)


def _among(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the softmaxes among these classes alone."""
    return kl(F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1))
