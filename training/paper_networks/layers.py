"""What several networks are made of."""

from __future__ import annotations

from torch import Tensor, nn

LARGE_SIDE = 64
"""From this side on the networks halve images once more at their start, or twice."""


def stem_stride(side: int) -> int:
    """Of the first convolution."""
    return 2 if side >= LARGE_SIDE else 1


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """With batch normalisation, and padding that keeps the size at stride 1."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def shuffled(features: Tensor, groups: int) -> Tensor:
    """The channels of all groups in turn: (B, C, H, W), C a multiple of `groups`."""
    return features.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
