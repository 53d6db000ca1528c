"""A data set of photographs on disk, decoded batch by batch: CUB-200-2011, or folders of the user's own."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from training import squares
from training.data import WHOLE, Batch, Statistics
from training.errors import UsageError
from training.seeds import generator
from training.squares import Photos

EDGE = 4096  # bytes
TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Photographs:
    """Files, and the squares of 224 pixels that are cut out of them; batches come on one device."""

    train: Photos
    test: Photos
    device: torch.device
    workers: int
    is_changed: bool = True
    """Whether training images are cropped at random and mirrored."""
    notes: tuple[str, ...] = ()
    statistics = Statistics(squares.MEAN, squares.DEVIATION)

    @cached_property
    def content(self) -> str:
        """Of every file its place, its size, and its first and last 4 KiB: all of a large set would take minutes."""
        digest = hashlib.sha256()
        root = os.path.commonpath(self.train.files + self.test.files)
        for photos in (self.train, self.test):
            for file, label in zip(photos.files, photos.labels.tolist(), strict=True):
                digest.update(f"{file.relative_to(root)} {label} {file.stat().st_size} ".encode() + _edges(file))
        return digest.hexdigest()[:12]

    @property
    def train_labels(self) -> Tensor:
        return self.train.labels.to(self.device)

    @property
    def test_labels(self) -> Tensor:
        return self.test.labels.to(self.device)

    @property
    def classes(self) -> int:
        return int(self.train.labels.max()) + 1

    @property
    def channels(self) -> int:
        return 3

    @property
    def side(self) -> int:
        return squares.SIDE

    def train_batches(
        self, rows: Tensor, batch_size: int, seed: int, epoch: int, share: slice = WHOLE
    ) -> Iterator[Batch]:
        photos = self.train.at(rows.cpu())
        order = torch.randperm(len(rows), generator=generator("epoch", seed, epoch))  # as `squares.epoch_batches` draws
        batches = squares.epoch_batches(
            photos, batch_size, seed, epoch, self.device, self.workers, share, is_changed=self.is_changed
        )
        for (images, labels), indices in zip(batches, order.split(batch_size), strict=False):
            yield Batch(images, labels, indices[share].to(self.device))

    def steps_per_epoch(self, count: int, batch_size: int) -> int:
        if count < batch_size:
            raise UsageError(
                f"photographs that do not fill a batch are left out of an epoch, and {count} do not fill one of "
                f"{batch_size}: lower --batch-size (a teacher's is 64), or give more training images"
            )
        return count // batch_size

    def unchanged(self) -> Photographs:
        return replace(self, is_changed=False)

    def ordered_train_batches(self, batch_size: int) -> Iterator[Batch]:
        return self._ordered(self.train, batch_size)

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        return self._ordered(self.test, batch_size)

    def _ordered(self, photos: Photos, batch_size: int) -> Iterator[Batch]:
        batches = squares.ordered_batches(photos, batch_size, self.device, self.workers)
        rows = torch.arange(len(photos.files), device=self.device).split(batch_size)
        for (images, labels), indices in zip(batches, rows, strict=True):
            yield Batch(images, labels, indices)

    def test_images_of(self, rows: Tensor) -> Tensor:
        images, _ = next(squares.ordered_batches(self.test.at(rows.cpu()), len(rows), self.device))
        return images


def _edges(file: Path) -> bytes:
    with file.open("rb") as opened:
        first = opened.read(EDGE)
        opened.seek(max(0, file.stat().st_size - EDGE))
        return first + opened.read(EDGE)


def read_folder(folder: Path, device: torch.device, workers: int) -> Photographs:
    """The images below train/ and test/ (or val/) of a folder, each with a folder for every class.

    A class has the images in its folder and in folders within it, of every format that Pillow reads; files of other
    endings are skipped, and counted in `notes`. What begins with a dot is left alone.

    Raises:
        UsageError: a folder is missing, empty, or the two do not have the same classes; or there is no Pillow.
    """
    squares.require_pillow(f"--data folder:{folder}")
    parts = [folder / "train", *(folder / name for name in TEST_FOLDERS if (folder / name).is_dir())][:2]
    if len(parts) < 2 or not parts[0].is_dir():
        raise UsageError(f"--data folder:{folder}: expected the folders train and test (or val) in {folder}")
    names = [sorted(path.name for path in part.iterdir() if path.is_dir() and path.name[0] != ".") for part in parts]
    if names[0] != names[1] or len(names[0]) < 2:
        raise UsageError(
            f"--data folder:{folder}: expected a folder for each class, two or more, the same in {parts[0].name} and "
            f"{parts[1].name}, got {len(names[0])} and {len(names[1])}"
            f"{_only_in_one(set(names[0]) ^ set(names[1]))}"
        )
    endings = squares.readable_endings()
    skipped: Counter[str] = Counter()
    train, test = (_read_part(part, names[0], endings, skipped) for part in parts)
    notes = (f"--data folder:{folder}: skipped {_counted(skipped)}",) if skipped else ()
    return Photographs(train, test, device, workers, notes=notes)


def _counted(skipped: Counter[str]) -> str:
    files = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in sorted(skipped.items()))
    return f"files that no image ends like: {files}"


def _only_in_one(names: set[str]) -> str:
    return f"; in one alone: {', '.join(sorted(names)[:5])}" if names else ""


def _read_part(part: Path, names: list[str], endings: frozenset[str], skipped: Counter[str]) -> Photos:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = sorted(_files(part / name))
        found = [path for path in inside if path.suffix.lower() in endings]
        skipped.update(path.suffix.lower() for path in inside if path.suffix.lower() not in endings)
        if not found:
            raise UsageError(
                f"{part / name} has no image: expected files that Pillow reads, such as .jpg, .png or .webp; found "
                f"{len(inside)} others"
            )
        files += found
        labels += [label] * len(found)
    return Photos(tuple(files), torch.tensor(labels))


def _files(folder: Path) -> Iterable[Path]:
    """In it and in folders within it, but for what begins with a dot."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
