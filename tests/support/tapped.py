"""A small network for taps, and how far a tap's head is from the network's logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels import FeatureTap, NetworkOutput
from icd_kernels.heads import head_parameters, is_linear

CLASSES = 5


def net(head: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def images_of(count: int = 4, *size: int) -> Tensor:
    return torch.randn(count, 3, *(size or (16, 16)), generator=torch.Generator().manual_seed(0))


def off(out: NetworkOutput) -> float:
    """How far the head of the mean of the map is from the logits."""
    assert out.features is not None
    assert out.head is not None
    mean = out.features.mean((2, 3))
    head: Any = out.head
    logits = F.linear(mean, *head_parameters(out.head)) if is_linear(out.head) else head(mean)
    return float((logits - out.logits).abs().max())


def train(model: nn.Module, tap: FeatureTap, steps: int = 5) -> None:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(tap(images_of()).logits, torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
