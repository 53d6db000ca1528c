"""A network small enough to be trained within a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd_kernels import NetworkOutput


class SmallNetwork(nn.Module):
    """Logits, the map they are made of, and the head that makes them; its weights depend on the seed alone.

    No batch norm: it would tell micro-batches, or the shards of several processes, from the whole batch.
    """

    def __init__(self, channels: int, classes: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(3, channels, 3, stride=2)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> NetworkOutput:
        features = self.body(images).relu()
        return NetworkOutput(self.head(features.mean((2, 3))), features, self.head)
