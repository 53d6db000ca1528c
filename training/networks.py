"""The teacher and the student: convolutions, a penultimate map, its mean, a linear classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd_kernels import NetworkOutput
from training.seeds import derived_seed


class Network(nn.Module):
    """A body that makes the penultimate map (B, C, H, W), and the head that classifies its mean."""

    def __init__(self, body: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> NetworkOutput:
        features = self.body(images)
        return NetworkOutput(self.head(features.mean(dim=(2, 3))), features, self.head)


def teacher(channels: int, side: int, classes: int, seed: int) -> Network:
    """240,000 weights; its map is 7 x 7 for 28 x 28 images and 8 x 8 for 8 x 8 ones."""
    return _built(channels, (32, 64, 128, 128), (2, 2, 1, 1) if side > 16 else (1, 1, 1, 1), classes, seed)


def student(channels: int, side: int, classes: int, seed: int) -> Network:
    """14,000 weights; its map is 4 x 4 for 28 x 28 and for 8 x 8 images."""
    return _built(channels, (16, 32, 32), (2, 2, 2) if side > 16 else (1, 2, 1), classes, seed)


def _built(inputs: int, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, seed: int) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("init", seed))
        sizes = zip((inputs, *channels), channels, strides, strict=False)
        network = Network(nn.Sequential(*(_block(*size) for size in sizes)), channels[-1], classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
