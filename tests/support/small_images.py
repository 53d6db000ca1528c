"""A data set small enough for what does not look at its images."""

from __future__ import annotations

import torch

from training.data import Images


def small_images(classes: int = 10, channels: int = 1, side: int = 8) -> Images:
    """Two training images and a test image of each class."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(2 * classes) % classes
    images = torch.randn(len(labels), channels, side, side, generator=draws)
    return Images(images, labels, images[:classes], labels[:classes], max_shift=1)
