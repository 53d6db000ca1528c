"""A module's output as a map (B, C, H, W): the ways in which models lay out what they pool."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

MOST_PREFIX_TOKENS = 8
"""Class, distillation and register tokens that a transformer may put before those of its patches."""


class Patch(NamedTuple):
    """Pixels of an image that one token stands for."""

    height: int
    width: int

    def grid(self, image: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches of an image."""
        return image[0] // self.height, image[1] // self.width

    def tokens(self, image: tuple[int, int]) -> int:
        """How many patches an image has."""
        rows, columns = self.grid(image)
        return rows * columns


class View(NamedTuple):
    """How to read an output. Nothing is copied but by `is_rectified`."""

    layout: str
    """"channels first", "channels last", or "tokens" (B, prefix + H·W, C)."""
    prefix: int = 0
    """Tokens before those of the map."""
    is_rectified: bool = False
    """Whether the model applies a ReLU of its own, no module's, to the output before it pools."""
    patch: Patch | None = None
    """What one token stands for, where that was seen; else the grid is as the image's sides."""

    def __call__(self, output: Tensor, image: tuple[int, int]) -> Tensor:
        """(B, C, H, W). `image` is the height and width of the images, by which tokens are laid out."""
        if self.is_rectified:
            output = output.relu()
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.unflatten(2, self._grid(tokens.shape[2], image))

    def _grid(self, tokens: int, image: tuple[int, int]) -> tuple[int, int]:
        if self.patch is not None and self.patch.tokens(image) == tokens:
            return self.patch.grid(image)
        return grid_of(tokens, image)

    def __str__(self) -> str:
        tokens = f" after {self.prefix}" if self.prefix else ""
        return f"{self.layout}{tokens}{', through a ReLU' if self.is_rectified else ''}"


def candidates(output: Tensor, image: tuple[int, int], patch_of_count: Callable[[int], Patch | None]) -> Iterator[View]:
    """Every way to read an output as a map, the plainest first; of tokens, first as many as there are patches."""
    for is_rectified in (False, True):
        if output.ndim == 4:
            yield View("channels first", 0, is_rectified)
            yield View("channels last", 0, is_rectified)
        if output.ndim == 3:
            patch = patch_of_count(output.shape[1])
            by_patch = None if patch is None else output.shape[1] - patch.tokens(image)
            if by_patch is not None:
                yield View("tokens", by_patch, is_rectified, patch)
            for prefix in range(min(MOST_PREFIX_TOKENS, output.shape[1] - 1) + 1):
                if prefix != by_patch:
                    yield View("tokens", prefix, is_rectified)


def patch_of(outputs: Iterable[Tensor | None], count: int, image: tuple[int, int]) -> Patch | None:
    """The patches of the first map (B, C, H, W) with so many pixels, but for a few other tokens; None without one."""
    for output in outputs:
        if output is None or output.ndim != 4:
            continue
        height, width = output.shape[2:]
        if 0 <= count - height * width <= MOST_PREFIX_TOKENS and height * width > 1:
            patch = Patch(image[0] // height, image[1] // width)
            if min(patch) > 0 and patch.grid(image) == (height, width):
                return patch
    return None


def grid_of(tokens: int, image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches: as the image's sides, else as near a square as can be."""
    height, width = image
    rows = round(math.sqrt(tokens * height / width))
    if rows * round(tokens / max(rows, 1)) != tokens:
        rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
    return rows, tokens // rows
