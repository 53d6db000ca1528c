"""ShuffleNetV2 of width 1 (Ma et al., arXiv:1807.11164)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.paper_networks.layers import convolution, shuffled, stem_stride


def shufflenet_v2(inputs: int, side: int) -> tuple[nn.Module, int]:
    """1024 x 4 x 4, or 1024 x 14 x 14 of 224 x 224."""
    layers: list[nn.Module] = [convolution(inputs, 24, 1, stem_stride(side)), nn.ReLU()]
    channels = 24
    for outputs, blocks in ((116, 4), (232, 8), (464, 4)):
        layers.append(HalvingUnit(channels, outputs))
        layers += [SplitUnit(outputs) for _ in range(blocks - 1)]
        channels = outputs
    return nn.Sequential(*layers, convolution(channels, 1024, 1), nn.ReLU()), 1024


class SplitUnit(nn.Module):
    """One half of the channels goes through, the other is convolved; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = _layers(channels // 2, channels // 2, stride=1)

    def forward(self, features: Tensor) -> Tensor:
        kept, convolved = features.chunk(2, dim=1)
        return shuffled(torch.cat((kept, self.layers(convolved)), dim=1), 2)


class HalvingUnit(nn.Module):
    """Two branches see all channels and halve the map."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.short = nn.Sequential(
            convolution(inputs, inputs, 3, 2, groups=inputs), convolution(inputs, half, 1), nn.ReLU()
        )
        self.long = _layers(inputs, half, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        return shuffled(torch.cat((self.short(features), self.long(features)), dim=1), 2)


def _layers(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    by_channel = convolution(outputs, outputs, 3, stride, groups=outputs)
    return nn.Sequential(
        convolution(inputs, outputs, 1), nn.ReLU(), by_channel, convolution(outputs, outputs, 1), nn.ReLU()
    )
