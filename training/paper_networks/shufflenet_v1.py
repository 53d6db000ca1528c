"""ShuffleNetV1 with 3 groups (Zhang et al., arXiv:1707.01083)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.paper_networks.layers import convolution, shuffled, stem_stride

GROUPS = 3
STEM = 24


def shufflenet_v1(inputs: int, side: int) -> tuple[nn.Module, int]:
    """960 x 4 x 4, or 960 x 14 x 14 of 224 x 224."""
    layers: list[nn.Module] = [convolution(inputs, STEM, 1, stem_stride(side)), nn.ReLU()]
    channels = STEM
    for outputs, blocks in ((240, 4), (480, 8), (960, 4)):
        layers.append(ShuffleUnit(channels, outputs - channels, is_halving=True))
        layers += [ShuffleUnit(outputs, outputs, is_halving=False) for _ in range(blocks - 1)]
        channels = outputs
    return nn.Sequential(*layers), channels


class ShuffleUnit(nn.Module):
    """Added to its input, or where it halves the map put beside its pooled input."""

    def __init__(self, inputs: int, outputs: int, *, is_halving: bool) -> None:
        super().__init__()
        self.groups = 1 if inputs == STEM else GROUPS  # the stem has too few channels for groups
        narrow = outputs // 4  # of what is added or put beside, as in the distillation papers' code
        self.narrow = nn.Sequential(convolution(inputs, narrow, 1, groups=self.groups), nn.ReLU())
        self.by_channel = nn.Sequential(
            convolution(narrow, narrow, 3, 2 if is_halving else 1, groups=narrow),
            nn.ReLU(),
            convolution(narrow, outputs, 1, groups=GROUPS),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if is_halving else None

    def forward(self, features: Tensor) -> Tensor:
        residual = self.by_channel(shuffled(self.narrow(features), self.groups))
        if self.pool is None:
            return torch.relu(residual + features)
        return torch.relu(torch.cat((residual, self.pool(features)), dim=1))
