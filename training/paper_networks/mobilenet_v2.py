"""MobileNetV2 of half width (Sandler et al., arXiv:1801.04381, table 2)."""

from __future__ import annotations

from torch import Tensor, nn

from training.paper_networks.layers import convolution, stem_stride


def mobilenet_v2(inputs: int, side: int) -> tuple[nn.Module, int]:
    """1280 x 2 x 2, or 1280 x 7 x 7 of 224 x 224."""
    layers: list[nn.Module] = [convolution(inputs, 16, 3, 2), nn.ReLU6()]
    channels = 16
    stages = (
        (1, 8, 1, 1),
        (6, 12, 2, stem_stride(side)),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )
    for expansion, outputs, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(channels, outputs, expansion, stride if block == 0 else 1))
            channels = outputs
    return nn.Sequential(*layers, convolution(channels, 1280, 1), nn.ReLU6()), 1280


class InvertedResidual(nn.Module):
    """Widen, convolve every channel by itself, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen: list[nn.Module] = [] if expansion == 1 else [convolution(inputs, wide, 1), nn.ReLU6()]
        by_channel = convolution(wide, wide, 3, stride, groups=wide)
        self.layers = nn.Sequential(*widen, by_channel, nn.ReLU6(), convolution(wide, outputs, 1))
        self.is_residual = inputs == outputs and stride == 1

    def forward(self, features: Tensor) -> Tensor:
        narrow = self.layers(features)
        return features + narrow if self.is_residual else narrow
