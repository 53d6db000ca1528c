"""WRN-40-2 (Zagoruyko and Komodakis, arXiv:1605.07146)."""

from __future__ import annotations

from torch import Tensor, nn

from training.paper_networks.layers import stem_stride


def wide_resnet_40_2(inputs: int, side: int) -> tuple[nn.Module, int]:
    """Three stages of six blocks, twice as wide as usual: 128 x 8 x 8, or 128 x 28 x 28 of 224 x 224."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, 16, 3, stem_stride(side), padding=1, bias=False)]
    channels = 16
    for wide, stride in ((32, 1), (64, 2), (128, 2)):
        for block in range(6):
            layers.append(WideBlock(channels, wide, stride if block == 0 else 1))
            channels = wide
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels


class WideBlock(nn.Module):
    """Normalisation and ReLU come before each convolution, and before the shortcut's where there is one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        is_same = inputs == outputs and stride == 1
        self.shortcut = None if is_same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        started = self.start(features)
        return self.residual(started) + (features if self.shortcut is None else self.shortcut(started))
