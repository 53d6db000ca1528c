"""The definition in plain PyTorch: simple, slow, differentiable by autograd, and the judge of every other backend.

Follows docs/definition.md line by line. Nothing here is optimised; class form holds B·N·K² numbers several times over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icd_kernels.checks import compute_dtype
from icd_kernels.options import NORM_FLOOR, Options


def icd_loss(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss: local logits of both networks, then the KL of their Gram matrices."""
    student_logits = region_logits(student_features, student_weight, student_bias, options.scales, options.pyramid)
    teacher_logits = region_logits(teacher_features, teacher_weight, teacher_bias, options.scales, options.pyramid)
    return gram_kl(student_logits, teacher_logits, options)


def region_features(features: Tensor, scales: tuple[int, ...], pyramid: str) -> Tensor:
    """Mean features f̄(m,n) of every cell, (B, N, C)."""
    with torch.autocast(features.device.type, enabled=False):
        return _pooled(features.to(compute_dtype(features)), scales, pyramid).transpose(1, 2)


def _pooled(source: Tensor, scales: tuple[int, ...], pyramid: str) -> Tensor:
    """[B, C, N] from maps [B, C, H, W]."""
    if pyramid == "nested":
        source = F.adaptive_avg_pool2d(source, max(scales))
    return torch.cat([F.adaptive_avg_pool2d(source, scale).flatten(2) for scale in scales], dim=2)


def region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[int, ...], pyramid: str
) -> Tensor:
    """Local logits z(m,n) = W f̄(m,n) + b of every cell, (B, K, N)."""
    dtype = compute_dtype(features, weight, bias)
    with torch.autocast(features.device.type, enabled=False):
        logits = weight.to(dtype) @ _pooled(features.to(dtype), scales, pyramid)  # [B, K, N]
        return logits if bias is None else logits + bias.to(dtype)[:, None]


def gram_kl(student_logits: Tensor, teacher_logits: Tensor, options: Options) -> Tensor:
    """Scale-weighted KL between the row softmaxes of both networks' Gram matrices."""
    dtype = compute_dtype(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student = _normalized(student_logits.to(dtype), options.normalize)
        teacher = _normalized(teacher_logits.detach().to(dtype), options.normalize)
        cells = [scale * scale for scale in options.scales]
        per_sample = student[:, :0].sum((1, 2))  # zeros, in the graph though every weight be 0
        for scale_weight, s, t in zip(
            options.scale_weights, student.split(cells, dim=2), teacher.split(cells, dim=2), strict=True
        ):
            if scale_weight > 0:
                scale_loss = _SCALE_LOSSES[options.gram](s, t, options.temperature)
                per_sample = per_sample + scale_weight * scale_loss
        return _reduced(per_sample, options.reduction)


def _normalized(logits: Tensor, normalize: str) -> Tensor:
    """Normalises over the K classes of every local logit vector."""
    if normalize == "l2":
        return logits / torch.linalg.vector_norm(logits, dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    if normalize == "zscore":
        deviation = logits.std(dim=1, correction=0, keepdim=True).clamp_min(NORM_FLOOR)
        return (logits - logits.mean(dim=1, keepdim=True)) / deviation
    if normalize == "center":
        return logits - logits.mean(dim=1, keepdim=True)
    assert normalize == "none", normalize
    return logits


def _class_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One K x K Gram for every image and cell: all rows, averaged over the cells. (B, K, n) -> (B,)"""
    student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)  # [B, n, K]
    student_gram = student.unsqueeze(3) * student.unsqueeze(2)  # [B, n, K, K]
    teacher_gram = teacher.unsqueeze(3) * teacher.unsqueeze(2)
    return _row_kl(student_gram, teacher_gram, temperature).sum(2).mean(1)


def _spatial_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One n x n Gram for every image: all rows. (B, K, n) -> (B,)"""
    student_gram = student.transpose(1, 2) @ student  # [B, n, n]
    teacher_gram = teacher.transpose(1, 2) @ teacher
    return _row_kl(student_gram, teacher_gram, temperature).sum(1)


def _sample_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One B x B Gram for every cell: the image's own row, averaged over the cells. (B, K, n) -> (B,)"""
    student, teacher = student.permute(2, 0, 1), teacher.permute(2, 0, 1)  # [n, B, K]
    student_gram = student @ student.transpose(1, 2)  # [n, B, B]
    teacher_gram = teacher @ teacher.transpose(1, 2)
    return _row_kl(student_gram, teacher_gram, temperature).mean(0)


_SCALE_LOSSES = {"class": _class_loss, "spatial": _spatial_loss, "sample": _sample_loss}


def _row_kl(student_gram: Tensor, teacher_gram: Tensor, temperature: float) -> Tensor:
    """KL(softmax(G_T/τ) ‖ softmax(G_S/τ)) of each row, natural log, teacher first. (.., n) -> (..)"""
    log_q = F.log_softmax(student_gram / temperature, dim=-1)
    log_p = F.log_softmax(teacher_gram / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _reduced(per_sample: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return per_sample.mean()
    return per_sample.sum() if reduction == "sum" else per_sample
