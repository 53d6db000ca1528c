"""ResNets (He et al., arXiv:1512.03385)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.paper_networks.layers import LARGE_SIDE, convolution, stem_stride


def resnet32x4(inputs: int, side: int) -> tuple[nn.Module, int]:
    """Three stages of five basic blocks, four times as wide as usual: 256 x 8 x 8, or 256 x 28 x 28 of 224 x 224."""
    layers: list[nn.Module] = [convolution(inputs, 32, 3, stem_stride(side)), nn.ReLU()]
    channels = 32
    for wide, stride in ((64, 1), (128, 2), (256, 2)):
        for block in range(5):
            first = stride if block == 0 else 1
            residual = nn.Sequential(convolution(channels, wide, 3, first), nn.ReLU(), convolution(wide, wide, 3))
            layers.append(Residual(residual, channels, wide, first))
            channels = wide
    return nn.Sequential(*layers), channels


def resnet50(inputs: int, side: int) -> tuple[nn.Module, int]:
    """Bottleneck blocks: 2048 x 4 x 4, or 2048 x 14 x 14 of 224 x 224, where the last stage keeps the size."""
    is_large = side >= LARGE_SIDE
    layers: list[nn.Module] = [convolution(inputs, 64, 7, 2) if is_large else convolution(inputs, 64, 3), nn.ReLU()]
    if is_large:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    channels = 64
    for narrow, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 1 if is_large else 2)):
        for block in range(blocks):
            first = stride if block == 0 else 1
            squeeze = (convolution(channels, narrow, 1), nn.ReLU(), convolution(narrow, narrow, 3, first), nn.ReLU())
            residual = nn.Sequential(*squeeze, convolution(narrow, 4 * narrow, 1))
            layers.append(Residual(residual, channels, 4 * narrow, first))
            channels = 4 * narrow
    return nn.Sequential(*layers), channels


class Residual(nn.Module):
    """Layers beside a shortcut, which is a 1 x 1 convolution where the shapes differ."""

    def __init__(self, residual: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = residual
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else convolution(inputs, outputs, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.residual(features) + self.shortcut(features))
