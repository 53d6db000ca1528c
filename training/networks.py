"""Networks by name: two small ones for small images, and those of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd_kernels import NetworkOutput
from training.errors import UsageError
from training.options import SMALL
from training.paper_networks import BODIES
from training.seeds import derived_seed

SMALLEST_SIDE = 8


class Network(nn.Module):
    """A body that makes the penultimate map (B, C, H, W), and the head that classifies its mean."""

    def __init__(self, body: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> NetworkOutput:
        features = self.body(images)
        return NetworkOutput(self.head(features.mean(dim=(2, 3))), features, self.head)


def make(name: str, role: str, channels: int, side: int, classes: int, seed: int) -> Network:
    """An untrained network whose weights depend on the seed alone.

    Args:
        name: "small" or one of the paper's.
        role: "teacher" or "student", which "small" is different for.
        channels: of the images.
        side: their height and width.
        classes: K.
        seed: draws the weights.

    Raises:
        UsageError: the images are too small.
    """
    if side < SMALLEST_SIDE:
        raise UsageError(f"--{role} {name}: images of {side} x {side} pixels are too small for it: 8 x 8 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("init", seed))
        if name == SMALL:
            body, map_channels = (_small_teacher if role == "teacher" else _small_student)(channels, side)
        else:
            body, map_channels = BODIES[name](channels, side)
        network = Network(body, map_channels, classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types


def _small_teacher(channels: int, side: int) -> tuple[nn.Module, int]:
    """240,000 weights; its map is 7 x 7 for 28 x 28 images and 8 x 8 for 8 x 8 ones."""
    return _blocks(channels, (32, 64, 128, 128), (2, 2, 1, 1) if side > 16 else (1, 1, 1, 1))


def _small_student(channels: int, side: int) -> tuple[nn.Module, int]:
    """14,000 weights; its map is 4 x 4 for 28 x 28 and for 8 x 8 images."""
    return _blocks(channels, (16, 32, 32), (2, 2, 2) if side > 16 else (1, 2, 1))


def _blocks(inputs: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[nn.Module, int]:
    sizes = zip((inputs, *channels), channels, strides, strict=False)
    return nn.Sequential(*(_block(*size) for size in sizes)), channels[-1]


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
