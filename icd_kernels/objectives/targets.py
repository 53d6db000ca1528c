"""Targets and sample weights: what they may be, and how a loss per image becomes the loss of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


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


def target_class(target: Tensor) -> Tensor:
    """Class indices (B,): the target's own, or the class that probabilities (B, K) make likeliest, the first of equals.

    What a loss that needs one true class takes for it, as NKD's authors do.
    """
    return target if target.ndim == 1 else target.argmax(1)


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
