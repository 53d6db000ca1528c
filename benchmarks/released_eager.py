"""The released iCD-KD objective op by op in eager PyTorch, as its authors' code does it.

Restated from a description of that code (docs/objectives.md), not taken from it: what is pooled from what, what is
concatenated, the masks, the checks for NaN that read a value on the host. Its numbers are those of
`make_objective("icd-kd", released=True)`; it is here to be counted and timed, as what people run today.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (1, 2, 4)
SCALE_WEIGHTS = (1 / 6, 2 / 6, 3 / 6)
GRAM_TEMPERATURE = 2.0
ICD_WEIGHT = 2.0
KD_TEMPERATURE = 4.0
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9


def icd_kd(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None,
    teacher_bias: Tensor | None,
    student_logits: Tensor,
    target: Tensor,
) -> Tensor:
    """0.1 CE + 0.9 SD-KD + 2 iCD of a batch: maps (B, C, H, W), weights (K, C), global logits (B, K)."""
    student = region_logits(student_features, student_weight, student_bias)
    with torch.no_grad():
        teacher = region_logits(teacher_features, teacher_weight, teacher_bias)
    base = sd_kd(student, teacher, target)
    return CE_WEIGHT * F.cross_entropy(student_logits, target) + KD_WEIGHT * base + ICD_WEIGHT * icd(student, teacher)


def sd_kd_objective(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None,
    teacher_bias: Tensor | None,
    student_logits: Tensor,
    target: Tensor,
) -> Tensor:
    """0.1 CE + 0.9 SD-KD of a batch: the arguments of :func:`icd_kd`."""
    student = region_logits(student_features, student_weight, student_bias)
    with torch.no_grad():
        teacher = region_logits(teacher_features, teacher_weight, teacher_bias)
    return CE_WEIGHT * F.cross_entropy(student_logits, target) + KD_WEIGHT * sd_kd(student, teacher, target)


def icd_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
) -> Tensor:
    """The iCD term alone: the arguments of `icd_kernels.icd_loss`, the value of `ICDLoss.released(weight=1)`."""
    student = region_logits(student_features, student_weight, student_bias)
    with torch.no_grad():
        teacher = region_logits(teacher_features, teacher_weight, teacher_bias)
    return icd(student, teacher)


def region_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, K, 21): the 4 x 4 grid pooled from the map, the coarser ones from it, every region through the classifier."""
    fine = F.adaptive_avg_pool2d(features, 4)
    middle, coarse = F.adaptive_avg_pool2d(fine, 2), F.adaptive_avg_pool2d(fine, 1)
    pooled = torch.cat([grid.flatten(2) for grid in (coarse, middle, fine)], dim=2)  # [B, C, 21]
    batch, channels, regions = pooled.shape
    rows = pooled.permute(2, 0, 1).reshape(regions * batch, channels)
    return F.linear(rows, weight, bias).reshape(regions, batch, -1).permute(1, 2, 0)


def icd(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_m w_m · KL of the cells x cells Grams of l2-normalised local logits (B, K, 21), mean over the images."""
    loss = torch.zeros((), dtype=student.dtype, device=student.device)
    start = 0
    for scale, scale_weight in zip(SCALES, SCALE_WEIGHTS, strict=True):
        end = start + scale * scale
        grams = []
        for logits in (student, teacher):
            cells = F.normalize(logits[:, :, start:end], p=2, dim=1).transpose(1, 2)  # [B, m², K]
            grams.append(torch.bmm(cells, cells.transpose(1, 2)) / GRAM_TEMPERATURE)
        log_q, p = F.log_softmax(grams[0], dim=-1), F.softmax(grams[1], dim=-1)
        loss = loss + scale_weight * F.kl_div(log_q, p, reduction="batchmean")
        start = end
    if torch.isnan(loss):
        loss = torch.zeros_like(loss)
    return loss


def sd_kd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """KD of every region, the complementary ones doubled by masks, mean over B·N."""
    batch, classes, regions = student.shape
    student, teacher = (logits.permute(2, 0, 1).reshape(-1, classes) for logits in (student, teacher))
    target = target.repeat(regions)
    log_q, p = F.log_softmax(student / KD_TEMPERATURE, dim=1), F.softmax(teacher / KD_TEMPERATURE, dim=1)
    rows = F.kl_div(log_q, p, reduction="none").sum(1) * KD_TEMPERATURE**2
    rows = torch.where(torch.isnan(rows), torch.zeros_like(rows), rows)

    prediction = teacher.argmax(dim=1)
    is_right = prediction == target
    is_wrong = prediction != target
    is_globally_right = is_right[:batch].repeat(regions)
    is_globally_wrong = is_wrong[:batch].repeat(regions)
    weights = torch.ones_like(rows)
    weights[is_globally_right & is_wrong] = 2.0
    weights[is_globally_wrong & is_right] = 2.0
    loss = (rows * weights).sum() / (batch * regions)
    if torch.isnan(loss) or torch.isinf(loss):
        loss = torch.zeros_like(loss)
    return loss
