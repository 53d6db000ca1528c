"""CIFAR-100, 60,000 images of 32 x 32 pixels in 100 classes, from its authors' archives or their extracted files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch
from torch import Tensor

from training import cifar100_python
from training.archives import Archive
from training.data import Images, Statistics
from training.errors import UsageError

ARCHIVE = Archive(
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "161 MB",
)
FOLDER = "cifar-100-binary"
PARTS = {"train": 50_000, "test": 10_000}
"""Images in each."""

SIDE = 32
RECORD = 2 + 3 * SIDE**2  # bytes: the coarse class, the fine class, the red, the green and the blue pixels row by row
PADDING = 4

MEAN = (0.5071, 0.4867, 0.4408)
DEVIATION = (0.2675, 0.2565, 0.2761)
"""Of the training pixels by channel, black 0 and white 1: the usual rounded values."""


def load(folder: Path, device: torch.device) -> Images:
    """The official split, images (n, 3, 32, 32) normalised, with the fine classes as labels.

    In `folder` may be cifar-100-binary.tar.gz or cifar-100-python.tar.gz (which torchvision downloads), or the folder
    that one of them was extracted to; the first of these is read.

    Raises:
        UsageError: none of them is there, or it is not what was published.
    """
    train, test = _parts(folder)
    return Images(
        train_images=normalized(train[0].to(device)),
        train_labels=train[1].to(device),
        test_images=normalized(test[0].to(device)),
        test_labels=test[1].to(device),
        max_shift=PADDING,
        statistics=Statistics(MEAN, DEVIATION),
    )


def normalized(pixels: Tensor) -> Tensor:
    """float32 of mean 0 and deviation 1 in each channel, from bytes (n, 3, H, W)."""
    return pixels.float().div_(255).sub_(_channels(MEAN, pixels)).div_(_channels(DEVIATION, pixels))


def augmented(images: Tensor, draws: torch.Generator) -> Tensor:
    """Every image cut out at random from itself in a frame of 4 black pixels, and mirrored half of the time.

    Args:
        images: (n, 3, H, W), normalised.
        draws: a CPU generator, whatever the images' device.

    Returns:
        (n, 3, H, W), channels-last.
    """
    count, channels, height, width = images.shape
    frame = (count, channels, height + 2 * PADDING, width + 2 * PADDING)
    padded = normalized(torch.zeros(1, channels, 1, 1, dtype=torch.uint8, device=images.device)).expand(frame).clone()
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = images
    corners = torch.randint(2 * PADDING + 1, (2, count, 1), generator=draws).to(images.device)
    mirrored = (torch.rand(count, 1, generator=draws) < 0.5).to(images.device)
    rows = corners[0] + torch.arange(height, device=images.device)  # [n, H]
    columns = corners[1] + torch.arange(width, device=images.device)  # [n, W]
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


Part = tuple[Tensor, Tensor]
"""Pixels [n, 3, 32, 32] uint8 and fine classes [n] int64."""


def _parts(folder: Path) -> tuple[Part, Part]:
    """Training and test images of the first form that is in `folder`."""
    if not (folder / ARCHIVE.name).exists():
        if (folder / cifar100_python.ARCHIVE.name).exists():
            return cifar100_python.from_archive(folder)
        if (folder / FOLDER).is_dir():
            return _extracted(folder / FOLDER, "train"), _extracted(folder / FOLDER, "test")
        if (folder / cifar100_python.FOLDER).is_dir():
            return cifar100_python.from_folder(folder)
    path = ARCHIVE.checked(folder)
    with tarfile.open(path) as archive:
        train, test = (archive.extractfile(f"{FOLDER}/{part}.bin") for part in PARTS)
        assert train is not None  # regular files, by the archive's checksum
        assert test is not None
        return _read(train.read()), _read(test.read())


def _extracted(folder: Path, part: str) -> Part:
    file = folder / f"{part}.bin"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{folder} is not whole ({error}): extract {ARCHIVE.name} again") from error
    if len(content) != PARTS[part] * RECORD:
        raise UsageError(
            f"{file} is not the published file, or was cut short: expected {PARTS[part] * RECORD} bytes, got "
            f"{len(content)}: extract {ARCHIVE.name} again"
        )
    return _read(content)


def _read(content: bytes) -> Part:
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, RECORD)
    return records[:, 2:].reshape(-1, 3, SIDE, SIDE), records[:, 1].long()


def _channels(values: tuple[float, ...], pixels: Tensor) -> Tensor:
    return torch.tensor(values, device=pixels.device)[:, None, None]
