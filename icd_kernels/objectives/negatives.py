"""Which rows of CRD's memory an image is contrasted with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_DRAWS = 2**62
"""The range of the random integers; their remainder by a count below 2^31 is uniform to one in 2^31."""


class Negatives(nn.Module):
    """Draws `count` rows for every image, with replacement, from the other images, or with labels from other classes.

    Args:
        rows: n, the images in the data set.
        count: upper bound on k, which is capped at n - 1, or with labels at n minus the largest class.
        labels: the class of every image, n of them, or None.
    """

    labels: Tensor
    order: Tensor
    start: Tensor
    size: Tensor

    def __init__(self, rows: int, count: int, labels: Tensor | Sequence[int] | None) -> None:
        super().__init__()
        self.rows = rows
        # Without labels every image is a class of its own.
        classes = torch.arange(rows) if labels is None else _check_labels(labels, rows)
        size = classes.bincount()
        available = rows - int(size.max())
        if available < 1:
            raise ValueError(f"labels must have at least 2 classes, got {len(size.nonzero())}")
        self.count = min(count, available)
        self.register_buffer("labels", classes, persistent=False)
        self.register_buffer("order", classes.argsort(stable=True), persistent=False)
        self.register_buffer("start", size.cumsum(0) - size, persistent=False)
        self.register_buffer("size", size, persistent=False)

    def draw(self, indices: Tensor) -> Tensor:
        """(B, k) rows for the images of rows `indices` (B,): uniform among the rows of the memory sorted by class,
        the image's own class left out."""
        label = self.labels[indices][:, None]
        start, size = self.start[label], self.size[label]
        random = torch.randint(_DRAWS, (len(indices), self.count), device=indices.device) % (self.rows - size)
        return self.order[torch.where(random < start, random, random + size)]


def _check_labels(labels: Tensor | Sequence[int], rows: int) -> Tensor:
    checked = torch.as_tensor(labels)
    if checked.dtype != torch.int64 or checked.shape != (rows,):
        raise ValueError(
            f"labels must be {rows} class indices, one for each row, got {checked.dtype} {tuple(checked.shape)}"
        )
    if rows and int(checked.min()) < 0:
        raise ValueError(f"labels must be 0 or more, got {int(checked.min())}")
    return checked.cpu().clone()
