"""VGGs with batch normalisation and one linear layer (Simonyan and Zisserman, arXiv:1409.1556)."""

from __future__ import annotations

from torch import nn

from training.paper_networks.layers import convolution

WIDTHS = (64, 128, 256, 512, 512)


def vgg8(inputs: int, side: int) -> tuple[nn.Module, int]:
    """One convolution a stage: 512 x 4 x 4, or 512 x 28 x 28 of 224 x 224."""
    return _body(inputs, convolutions=1)


def vgg13(inputs: int, side: int) -> tuple[nn.Module, int]:
    """Two convolutions a stage; the map is as `vgg8`'s."""
    return _body(inputs, convolutions=2)


def _body(inputs: int, convolutions: int) -> tuple[nn.Module, int]:
    """Three poolings whatever the side; the last two stages have one size."""
    layers: list[nn.Module] = []
    channels = inputs
    for stage, width in enumerate(WIDTHS):
        for _ in range(convolutions):
            layers += [convolution(channels, width, 3), nn.ReLU()]
            channels = width
        if stage < 3:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers), channels
