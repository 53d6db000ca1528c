"""mdistiller's CIFAR teachers, by their published layout: the names of their weights, and what they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Output = tuple[Tensor, dict[str, Any]]


class Block(nn.Module):
    """A block of resnet32x4 ("downsample") and, with three convolutions, of resnet50 ("shortcut")."""

    def __init__(self, inputs: int, sizes: list[tuple[int, int, int]], shortcut: str) -> None:
        super().__init__()
        channels = inputs
        for number, (outputs, kernel, stride) in enumerate(sizes, 1):
            convolution = nn.Conv2d(channels, outputs, kernel, stride, padding=kernel // 2, bias=False)
            setattr(self, f"conv{number}", convolution)
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
            channels = outputs
        self.count, self.name = len(sizes), shortcut
        stride = max(size[2] for size in sizes)
        if stride != 1 or inputs != channels:
            branch = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
            setattr(self, shortcut, branch)

    def forward(self, features: Tensor) -> Tensor:
        out = features
        for number in range(1, self.count + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            out = torch.relu(out) if number < self.count else out
        return torch.relu(out + getattr(self, self.name, nn.Identity())(features))


class ResNet(nn.Module):
    def __init__(self, stem: int, stages: list[list[list[tuple[int, int, int]]]], shortcut: str, head: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem)
        channels, self.stages, self.head = stem, len(stages), head
        for number, blocks in enumerate(stages, 1):
            layers = []
            for sizes in blocks:
                layers.append(Block(channels, sizes, shortcut))
                channels = sizes[-1][0]
            setattr(self, f"layer{number}", nn.Sequential(*layers))
        setattr(self, head, nn.Linear(channels, 100))

    def forward(self, images: Tensor) -> Output:
        feats = [torch.relu(self.bn1(self.conv1(images)))]
        for number in range(1, self.stages + 1):
            feats.append(getattr(self, f"layer{number}")(feats[-1]))
        pooled = feats[-1].mean((2, 3))
        return getattr(self, self.head)(pooled), {"feats": feats, "pooled_feat": pooled}


def resnet32x4() -> nn.Module:
    stages = [
        [[(wide, 3, stride if block == 0 else 1), (wide, 3, 1)] for block in range(5)]
        for wide, stride in ((64, 1), (128, 2), (256, 2))
    ]
    return ResNet(32, stages, "downsample", "fc")


def resnet50() -> nn.Module:
    stages = [
        [[(narrow, 1, 1), (narrow, 3, stride if block == 0 else 1), (4 * narrow, 1, 1)] for block in range(blocks)]
        for narrow, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
    ]
    return ResNet(64, stages, "shortcut", "linear")


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        started = torch.relu(self.bn1(features))
        out = self.conv2(torch.relu(self.bn2(self.conv1(started))))
        return out + (features if self.convShortcut is None else self.convShortcut(started))


class WideStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        blocks = [WideBlock(inputs, outputs, stride), *(WideBlock(outputs, outputs, 1) for _ in range(5))]
        self.layer = nn.Sequential(*blocks)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layer(features)
        return out


class WideResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1, self.block2 = WideStage(16, 32, 1), WideStage(32, 64, 2)
        self.block3, self.bn1 = WideStage(64, 128, 2), nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, 100)

    def forward(self, images: Tensor) -> Output:
        last = torch.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(images))))))
        return self.fc(last.mean((2, 3))), {"feats": [last]}


class VGG13(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for number, wide in enumerate((64, 128, 256, 512, 512)):
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
                channels = wide
            setattr(self, f"block{number}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(512, 100)

    def forward(self, images: Tensor) -> Output:
        out = images
        for number in range(5):
            out = torch.relu(getattr(self, f"block{number}")(out))
            out = nn.functional.max_pool2d(out, 2) if number < 3 else out
        return self.classifier(out.mean((2, 3))), {"feats": [out]}


TEACHERS = {"resnet32x4": resnet32x4, "resnet50": resnet50, "wrn-40-2": WideResNet, "vgg13": VGG13}
"""Networks by the names that --teacher takes."""
