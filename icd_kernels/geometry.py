"""Where the regions lie: the cells of a scale, and which cells have to be pooled and projected.

The fast path relies on linearity. Pooling and projection are linear, so where every cell of a coarse scale is a union
of equally large cells of the finest one, its logits are the mean of theirs: only the finest grid is pooled and
projected ("the base grid"), and the gradient of every scale folds back onto it.
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


def finest_grid(scales: Sequence[int], pyramid: str, height: int, width: int) -> int:
    """Side of the finest grid where every scale's logits are means over its cells; 0 where they are not.

    They are in two cases: in a nested pyramid, and where each cell is a union of equally large cells of that grid.
    """
    finest = max(scales)
    if pyramid == "nested":
        return finest
    divides_map = height % finest == 0 and width % finest == 0
    return finest if divides_map and all(finest % scale == 0 for scale in scales) else 0


def base_scales(scales: Sequence[int], finest: int) -> tuple[int, ...]:
    """The scales whose cells are pooled from the map and projected: the finest grid alone where there is one."""
    return (finest,) if finest else tuple(scales)


def coarser(finest: Tensor, scales: Sequence[int]) -> Tensor:
    """The cells of every scale, (B, N, C), from those of the finest, (B, finest², C), that they are means of."""
    side = max(scales)
    grid = finest.unflatten(1, (side, side))
    return torch.cat([finest if scale == side else _means(grid, scale) for scale in scales], dim=1)


def _means(grid: Tensor, scale: int) -> Tensor:
    """Cells of one scale, (B, scale², C), of a grid (B, side, side, C)."""
    side = grid.shape[1]
    if side % scale == 0:
        parts = (scale, side // scale)
        return grid.unflatten(2, parts).unflatten(1, parts).mean((2, 4)).flatten(1, 2)
    windows = [window(index, scale, side) for index in range(scale)]
    cells = [grid[:, top:bottom, left:right].mean((1, 2)) for top, bottom in windows for left, right in windows]
    return torch.stack(cells, dim=1)
