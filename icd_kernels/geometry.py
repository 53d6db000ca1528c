"""Where the regions lie: the cells of a scale, and which cells have to be pooled and projected.

Linearity is what a fast version lives on. Pooling and projection are linear, so where every cell of a
coarse scale is a union of equally large cells of the finest one, its logits are the mean of theirs:
only the finest grid is pooled and projected ("the base grid"), and the gradient of every scale folds back onto it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_count(scales: Sequence[int]) -> int:
    """N, the number of regions of all scales together."""
    return sum(scale * scale for scale in scales)


def window(index: int, scale: int, extent: int) -> tuple[int, int]:
    """First and one-past-last pixel of cell `index` along one axis (the windows of `AdaptiveAvgPool2d`)."""
    return index * extent // scale, -(-(index + 1) * extent // scale)


def is_folded(scales: Sequence[int], pyramid: str, height: int, width: int) -> bool:
    """Whether every scale's logits are means over the finest scale's: exactly true in these two cases."""
    if pyramid == "nested":
        return True
    finest = max(scales)
    divides_map = height % finest == 0 and width % finest == 0
    return divides_map and all(finest % scale == 0 for scale in scales)


def base_scales(scales: Sequence[int], pyramid: str, height: int, width: int) -> tuple[int, ...]:
    """The scales whose cells are pooled from the map and projected: the finest alone where folded, else all."""
    return (max(scales),) if is_folded(scales, pyramid, height, width) else tuple(scales)


def nested_means(scales: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What makes every cell of a nested pyramid of the finest scale's cells, (N, finest²): each is a mean of them."""
    finest = max(scales)
    means = torch.zeros(cell_count(scales), finest, finest, dtype=dtype)
    first = 0
    for scale in scales:
        for row in range(scale):
            for column in range(scale):
                (top, bottom), (left, right) = (window(place, scale, finest) for place in (row, column))
                cell = means[first + row * scale + column, top:bottom, left:right]
                cell.fill_(1 / cell.numel())
        first += scale * scale
    return means.flatten(1).to(device)
