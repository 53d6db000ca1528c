"""A module's output as a map (B, C, H, W): the ways in which models lay out what they pool."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

MOST_PREFIX_TOKENS = 8
"""Class, distillation and register tokens that a transformer may put before those of its patches."""


class View(NamedTuple):
    """How to read an output. Nothing is copied but by `is_rectified`."""

    layout: str
    """"channels first", "channels last", or "tokens" (B, prefix + H·W, C)."""
    prefix: int = 0
    """Tokens before those of the map."""
    is_rectified: bool = False
    """Whether the model applies a ReLU of its own, no module's, to the output before it pools."""

    def __call__(self, output: Tensor, image: tuple[int, int]) -> Tensor:
        """(B, C, H, W). `image` is the height and width of the images, by which tokens are laid out."""
        if self.is_rectified:
            output = output.relu()
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.unflatten(2, grid_of(tokens.shape[2], image))

    def __str__(self) -> str:
        tokens = f" after {self.prefix}" if self.prefix else ""
        return f"{self.layout}{tokens}{', through a ReLU' if self.is_rectified else ''}"


def candidates(output: Tensor, channels: int) -> Iterator[View]:
    """Every way to read an output as a map of so many channels, the plainest first."""
    for is_rectified in (False, True):
        if output.ndim == 4 and output.shape[1] == channels:
            yield View("channels first", 0, is_rectified)
        if output.ndim == 4 and output.shape[3] == channels:
            yield View("channels last", 0, is_rectified)
        if output.ndim == 3 and output.shape[2] == channels:
            for prefix in range(min(MOST_PREFIX_TOKENS, output.shape[1] - 1) + 1):
                yield View("tokens", prefix, is_rectified)


def grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches: as the image's sides, else as near a square as can be."""
    height, width = image
    rows = round(math.sqrt(tokens * height / width))
    if rows * round(tokens / max(rows, 1)) != tokens:
        rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows
