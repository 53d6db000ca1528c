"""The teacher and the student: convolutions, a penultimate map, its mean, a linear classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.seeds import derived_seed


class Network(nn.Module):
    """A small CNN in two parts, as iCD needs it: the penultimate map, and the head that classifies its mean."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        sizes = zip((1, *channels), channels, strides, strict=False)
        self.body = nn.Sequential(*(_block(*size) for size in sizes))
        self.head = nn.Linear(channels[-1], classes)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate map, (B, C, H, W)."""
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        """Logits of a penultimate map, (B, K)."""
        return self.head(features.mean(dim=(2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def teacher(image_size: int, classes: int, seed: int) -> Network:
    """240,000 weights; its map is 7 x 7 for 28 x 28 images and 8 x 8 for 8 x 8 ones."""
    return _built((32, 64, 128, 128), (2, 2, 1, 1) if image_size > 16 else (1, 1, 1, 1), classes, seed)


def student(image_size: int, classes: int, seed: int) -> Network:
    """14,000 weights; its map is 4 x 4."""
    return _built((16, 32, 32), (2, 2, 2) if image_size > 16 else (1, 2, 1), classes, seed)


def _built(channels: tuple[int, ...], strides: tuple[int, ...], classes: int, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("init", seed))
        network = Network(channels, strides, classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
