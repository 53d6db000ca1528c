"""A classifier head in any of its usual forms, as (weight, bias)."""

from __future__ import annotations

from torch import Tensor, nn

Head = nn.Linear | nn.Conv2d | tuple[Tensor, Tensor | None]


def head_parameters(head: Head, name: str = "head") -> tuple[Tensor, Tensor | None]:
    """Weight (K, C) and bias (K,) or None of an `nn.Linear`, a 1 x 1 `nn.Conv2d` or a (weight, bias) pair.

    Raises:
        TypeError: `head` is none of these.
        ValueError: a convolution that is not a plain 1 x 1, or a sequence that is not a pair.
    """
    if isinstance(head, nn.Linear):
        return head.weight, head.bias
    if isinstance(head, nn.Conv2d):
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
