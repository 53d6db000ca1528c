"""What one network makes of a batch: the value that networks, taps and objectives hand to each other."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from icd_kernels.heads import Head


class NetworkOutput(NamedTuple):
    """A network's logits and, where they are known, the map and the head behind them."""

    logits: Tensor
    """(B, K)"""
    features: Tensor | None = None
    """(B, C, H, W): the map whose mean the head classifies."""
    head: Head | None = None
    """An `nn.Linear`, a 1 x 1 `nn.Conv2d`, a (weight, bias) pair, or any callable from (M, C) to (M, K)."""
    regions: Tensor | None = None
    """(B, K, N): local logits that are known already, such as a cached teacher's (:func:`icd_kernels.region_logits`);
    features and head are then not read for them."""
