"""LDRLD: relations among the student's likeliest classes, pair by pair, and the rest (Xu et al., arXiv:2507.15911)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.classes import without_masked
from icd_kernels.objectives.common import CommonOptions, check_count, check_number, set_checked
from icd_kernels.objectives.method import Method
from icd_kernels.objectives.rows import binary_kl, kl
from icd_kernels.objectives.targets import reduced
from icd_kernels.objectives.temperature import (
    CurrentTemperature,
    Temperature,
    check_temperature_option,
    softened,
    squared,
)


@dataclass(frozen=True)
class LDRLDOptions:
    """LDRLD's."""

    temperature: Temperature = 4.0
    top_k: int = 7
    """How many of the student's likeliest classes are related pair by pair."""
    alpha: float = 10.5
    """Weight of the relations among them."""
    beta: float = 7.0
    """Weight of the relations among the rest."""

    def __post_init__(self) -> None:
        set_checked(
            self,
            temperature=check_temperature_option(self.temperature),
            top_k=check_count("top_k", self.top_k, 2),
            alpha=check_number("alpha", self.alpha),
            beta=check_number("beta", self.beta),
        )


class LDRLDTerm(nn.Module):
    """α T² Σ_c w_c KL_c / (k(k-1)/2 + 1) + β T² KL_rest, per image.

    c runs over every pair of the student's k likeliest classes and over all k together; KL_c and KL_rest are the KL of
    the softmax among those classes alone. A pair of ranks i < j, counted from 1, weighs
    w_ij = 2 e^(-0.05 (i+j)) / (1.5 + |i-j|), all k together weigh 1; the rest are the other K - k classes.
    With K ≤ k every class is among the likeliest; with K ≤ k + 1 the rest have no relations: KL_rest = 0. Reads no
    target. Ties between the student's logits go to the lower class.
    """

    def __init__(self, options: LDRLDOptions) -> None:
        super().__init__()
        self.options = options
        self.temperature = CurrentTemperature(options.temperature)

    def check_values(self) -> None:
        """Raises ValueError where a learnt temperature is not above 0; waits for its device."""
        self.temperature.check()

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        temperature = self.temperature(batch.epoch)
        student, teacher = (without_masked(view.logits, batch.masked) for view in (batch.student, batch.teacher))
        order = student.detach().argsort(dim=1, descending=True, stable=True)  # [B, K]
        student, teacher = (softened(logits.gather(1, order), temperature) for logits in (student, teacher))
        count = min(self.options.top_k, order.shape[1])
        (top_s, rest_s), (top_t, rest_t) = ((z[:, :count], z[:, count:]) for z in (student, teacher))
        pairs = binary_kl(top_s[:, :, None] - top_s[:, None], top_t[:, :, None] - top_t[:, None])  # [B, k, k]
        weighted = (pairs * pair_weights(count, pairs)).sum((1, 2)) + _among(top_s, top_t)
        alpha = self.options.alpha / (count * (count - 1) / 2 + 1)
        per_image = alpha * weighted + self.options.beta * _among(rest_s, rest_t)
        return reduced(squared(temperature, per_image) * per_image, reduction)


def pair_weights(count: int, like: Tensor) -> Tensor:
    """w_ij above the diagonal and 0 elsewhere, (k, k), of the dtype and device of `like`."""
    rank = torch.arange(1, count + 1, dtype=like.dtype, device=like.device)
    i, j = rank[:, None], rank[None]
    return (2 * torch.exp(-0.05 * (i + j)) / (1.5 + (i - j).abs())).triu(1)


def _among(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the softmaxes among these classes alone."""
    return kl(F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1))


LDRLD = Method("ldrld", CommonOptions(), LDRLDOptions(), LDRLDTerm)
