"""ResNet32x4 and MobileNetV2 for images of 32 x 32 or 224 x 224, untrained: what a whole distillation step runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd_kernels import NetworkOutput


class Classifier(nn.Module):
    """A body, and a linear head on the mean of its map."""

    def __init__(self, body: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> NetworkOutput:
        features = self.body(images)
        return NetworkOutput(self.head(features.mean((2, 3))), features, self.head)


LARGE_IMAGE = 224
"""Images of this side are halved once more than those of 32, by both networks."""


def resnet32x4(classes: int, side: int = 32) -> Classifier:
    """Three stages of five basic blocks of 64, 128 and 256 channels (He et al., 1512.03385).

    Its map is 256 x 8 x 8 for images of 32 x 32, and 256 x 28 x 28 for 224 x 224.
    """
    layers: list[nn.Module] = [_convolution(3, 32, 3, 2 if side == LARGE_IMAGE else 1), nn.ReLU()]
    inputs = 32
    for channels, stride in ((64, 1), (128, 2), (256, 2)):
        for block in range(5):
            layers.append(BasicBlock(inputs, channels, stride if block == 0 else 1))
            inputs = channels
    return Classifier(nn.Sequential(*layers), inputs, classes)


def mobilenetv2(classes: int, side: int = 32) -> Classifier:
    """Half width, as distillation papers use it (Sandler et al., 1801.04381, table 2).

    Its map is 1280 x 2 x 2 for images of 32 x 32, and 1280 x 7 x 7 for 224 x 224.
    """
    first = 2 if side == LARGE_IMAGE else 1
    layers: list[nn.Module] = [_convolution(3, 16, 3, 2), nn.ReLU6()]
    inputs = 16
    stages = (
        (1, 8, 1, 1),
        (6, 12, 2, first),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )
    for expansion, channels, blocks, stride in stages:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, channels, expansion, stride if block == 0 else 1))
            inputs = channels
    layers += [_convolution(inputs, 1280, 1), nn.ReLU6()]
    return Classifier(nn.Sequential(*layers), 1280, classes)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(inputs, channels, 3, stride), nn.ReLU(), _convolution(channels, channels, 3)
        )
        is_same = inputs == channels and stride == 1
        self.shortcut = nn.Identity() if is_same else _convolution(inputs, channels, 1, stride)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.residual(features) + self.shortcut(features))


class InvertedResidual(nn.Module):
    """Widen, convolve every channel by itself, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen: list[nn.Module] = [] if expansion == 1 else [_convolution(inputs, wide, 1), nn.ReLU6()]
        self.layers = nn.Sequential(
            *widen, _convolution(wide, wide, 3, stride, groups=wide), nn.ReLU6(), _convolution(wide, channels, 1)
        )
        self.is_residual = inputs == channels and stride == 1

    def forward(self, features: Tensor) -> Tensor:
        narrow = self.layers(features)
        return features + narrow if self.is_residual else narrow


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
