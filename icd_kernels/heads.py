"""A classifier head: a linear layer in any of its usual forms, or any function from vectors to logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

LinearHead = nn.Linear | nn.Conv2d | tuple[Tensor, Tensor | None]
Head = LinearHead | Callable[[Tensor], Tensor]
"""What classifies the mean of a map: linear, or a callable from (M, C) to (M, K)."""


def is_linear(head: object) -> bool:
    """Whether the head is W f + b: a pair, or an `nn.Linear` or convolution whose forward is PyTorch's own.

    What is neither that nor a callable is refused by :func:`head_parameters`, as is a convolution that is not 1 x 1.
    """
    if isinstance(head, nn.Conv2d):
        return type(head).forward is nn.Conv2d.forward
    if isinstance(head, nn.Linear):
        return type(head).forward is nn.Linear.forward
    return isinstance(head, (tuple, list, nn.Conv1d, nn.Conv3d)) or not callable(head)


def head_parameters(head: Head, name: str = "head") -> tuple[Tensor, Tensor | None]:
    """Weight (K, C) and bias (K,) or None of an `nn.Linear`, a 1 x 1 `nn.Conv2d` or a (weight, bias) pair.

    Raises:
        TypeError: `head` is none of these.
        ValueError: a convolution that is not a plain 1 x 1, or a sequence that is not a pair.
    """
    if isinstance(head, nn.Linear) and is_linear(head):
        return head.weight, head.bias
    if isinstance(head, nn.Conv2d) and is_linear(head):
        if head.kernel_size != (1, 1) or head.groups != 1:
            raise ValueError(f"{name} must be a 1 x 1 convolution with one group, got {head}")
        return head.weight.flatten(1), head.bias
    if isinstance(head, (tuple, list)):
        if len(head) != 2:
            raise ValueError(f"{name} must be a pair (weight, bias), got {len(head)} items")
        return head[0], head[1]
    raise TypeError(
        f"{name} must be an nn.Linear, a 1 x 1 nn.Conv2d or a (weight, bias) pair, got {type(head).__name__}"
    )


def apply_head(head: Callable[[Tensor], Tensor], rows: Tensor, name: str = "head") -> Tensor:
    """Logits (M, K) of vectors (M, C), which are given in the dtype of the head's parameters.

    Raises:
        ValueError: a BatchNorm in training mode is in it, or it returns something else.
    """
    if isinstance(head, nn.Module):
        _refuse_batch_statistics(head, name)
        dtypes = [parameter.dtype for parameter in head.parameters() if parameter.is_floating_point()]
        rows = rows.to(dtypes[0]) if dtypes else rows
    logits = head(rows)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != rows.shape[0]:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{name} must return logits ({rows.shape[0]}, K) for {tuple(rows.shape)}, got {came}")
    return logits if logits.dtype == torch.float64 else logits.float()


def _refuse_batch_statistics(head: nn.Module, name: str) -> None:
    """The statistics of regions are not those of images, and running statistics must not learn them."""
    for child_name, child in head.named_modules():
        uses_batch = child.training or getattr(child, "running_mean", None) is None
        if isinstance(child, _BatchNorm) and uses_batch:
            raise ValueError(
                f"{name} must not have a BatchNorm in training mode, whose statistics over regions are not those over "
                f"images, got {child_name or type(child).__name__!r}: set it to eval(), or take the head of a "
                "FeatureTap, which uses the statistics of the network's own forward"
            )
