"""Targets and sample weights: what they may be, and how a loss per image becomes the loss of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from icd_kernels.objectives.classes import UNLABELLED

SUM_TOLERANCE = 0.02
"""How far from 1 probabilities may sum up: what bfloat16 leaves of a few thousand."""


def check_target(target: Tensor, batch: int, classes: int) -> None:
    """Class indices (B,) in int64, or probabilities (B, K) (label smoothing, mixup) in a floating dtype."""
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor of shape (B,) or (B, K), got {type(target).__name__}")
    if target.is_floating_point():
        if target.shape != (batch, classes):
            raise ValueError(f"target of probabilities must have shape {(batch, classes)}, got {tuple(target.shape)}")
    elif target.dtype != torch.int64:
        raise TypeError(f"target must hold class indices in int64 or probabilities, got {target.dtype}")
    elif target.shape != (batch,):
        raise ValueError(f"target of class indices must have shape {(batch,)}, got {tuple(target.shape)}")


def check_target_values(target: Tensor, classes: int) -> None:
    """Raises ValueError where indices are out of range, or probabilities are below 0 or do not sum to 1.

    Waits for the target's device.
    """
    if target.numel() == 0:
        return
    if target.is_floating_point():
        sums = target.detach().float().sum(1)
        if (((sums - 1).abs() > SUM_TOLERANCE).any() | (target < 0).any()).tolist():
            raise ValueError(
                "target of probabilities must be 0 or more and sum to 1 in every row, got sums from "
                f"{min(sums.tolist()):.4g} to {max(sums.tolist()):.4g}; several labels at once (multi-label) are no "
                "target here"
            )
        return
    values = target.tolist()
    if max(values) >= classes or any(value < 0 and value != UNLABELLED for value in values):
        raise ValueError(
            f"target must hold classes from 0 to {classes - 1}, or {UNLABELLED} for an image without a label, "
            f"got {min(values)} to {max(values)}"
        )


def target_class(target: Tensor | None, teacher: Tensor) -> Tensor:
    """Class indices (B,): the target's own, or the class that probabilities (B, K) make likeliest, the first of equals.

    What a loss that needs one true class takes for it, as NKD's authors do. Where an image has no label, the class that
    the teacher's logits (B, K) make likeliest stands in.
    """
    if target is None:
        return teacher.argmax(1)
    if target.ndim == 2:
        return target.argmax(1)
    return torch.where(target == UNLABELLED, teacher.argmax(1), target)


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Every image's cross-entropy (B,), 0 for an image without a label. A logit of -inf is no class of its image.

    `target`: class indices, or probabilities in any floating dtype. Smoothing moves its share to all classes alike.
    """
    if target.ndim == 1 and smoothing == 0:
        return F.cross_entropy(logits, target, reduction="none", ignore_index=UNLABELLED)
    log_q = F.log_softmax(logits, dim=1)
    is_class = logits.detach() > -torch.inf
    finite = torch.where(is_class, log_q, 0.0)
    smooth = -finite.sum(1) / is_class.sum(1)
    if target.ndim == 2:
        sharp = -(target.to(logits.dtype) * finite).sum(1)
    else:
        sharp = F.nll_loss(log_q, target, reduction="none", ignore_index=UNLABELLED)
        smooth = smooth.masked_fill(target == UNLABELLED, 0.0)
    return (1 - smoothing) * sharp + smoothing * smooth


def check_sample_weight(sample_weight: Tensor | None, batch: int) -> None:
    """One weight for each image, (B,), floating; or None."""
    if sample_weight is None:
        return
    if not isinstance(sample_weight, Tensor) or not sample_weight.is_floating_point():
        came = sample_weight.dtype if isinstance(sample_weight, Tensor) else type(sample_weight).__name__
        raise TypeError(f"sample_weight must be a floating torch.Tensor of shape (B,) or None, got {came}")
    if sample_weight.shape != (batch,):
        raise ValueError(f"sample_weight must have shape {(batch,)}, got {tuple(sample_weight.shape)}")


def reduced(per_image: Tensor, reduction: str) -> Tensor:
    """(B,) or (B, N) losses, each image's the mean of its row: their mean, their sum over the images, or (B,)."""
    if reduction == "mean":
        return per_image.mean()
    if per_image.ndim == 2:
        per_image = per_image.mean(1)
    return per_image.sum() if reduction == "sum" else per_image
