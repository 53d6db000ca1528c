"""Random numbers that depend on what they are for, and on nothing that ran before.

A resumed run therefore draws what an unbroken one would have drawn, with no generator state to carry over.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as ("order", seed, epoch)."""
    digest = hashlib.sha256(repr(purpose).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose; the draws are the same whatever device the training is on."""
    return torch.Generator().manual_seed(derived_seed(*purpose))
