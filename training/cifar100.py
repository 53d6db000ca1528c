"""CIFAR-100, read from its authors' binary archive: 60,000 images of 32 x 32 pixels, 100 classes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch
from torch import Tensor

from training.archives import Archive
from training.data import Images
from training.errors import UsageError

ARCHIVE = Archive(
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "161 MB",
)
PICKLED_ARCHIVE = "cifar-100-python.tar.gz"

SIDE = 32
RECORD = 2 + 3 * SIDE**2  # bytes: the coarse class, the fine class, the red, the green and the blue pixels row by row
PADDING = 4

MEAN = (0.5071, 0.4867, 0.4408)
DEVIATION = (0.2675, 0.2565, 0.2761)
"""Of the training pixels by channel, black 0 and white 1: the usual rounded values."""


def load(folder: Path, device: torch.device) -> Images:
    """The official split, images (n, 3, 32, 32) normalised, with the fine classes as labels.

    Raises:
        UsageError: the binary archive is not in `folder`, or is another file.
    """
    _refuse_pickles(folder)
    path = ARCHIVE.checked(folder)
    with tarfile.open(path) as archive:
        train, test = (_read(archive, f"cifar-100-binary/{part}.bin") for part in ("train", "test"))
    return Images(
        train_images=normalized(train[0].to(device)),
        train_labels=train[1].to(device),
        test_images=normalized(test[0].to(device)),
        test_labels=test[1].to(device),
        max_shift=PADDING,
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


def _refuse_pickles(folder: Path) -> None:
    if (folder / PICKLED_ARCHIVE).exists() and not (folder / ARCHIVE.name).exists():
        raise UsageError(
            f"{folder / PICKLED_ARCHIVE} is not read: it holds pickles, and loading a pickle can run any code. "
            f"The same images are in {ARCHIVE.name}. {ARCHIVE.how_to_get(folder)}"
        )


def _read(archive: tarfile.TarFile, name: str) -> tuple[Tensor, Tensor]:
    """Pixels [n, 3, 32, 32] uint8 and fine classes [n] int64."""
    file = archive.extractfile(name)
    assert file is not None  # a regular file, by the archive's checksum
    records = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).view(-1, RECORD)
    return records[:, 2:].reshape(-1, 3, SIDE, SIDE), records[:, 1].long()


def _channels(values: tuple[float, ...], pixels: Tensor) -> Tensor:
    return torch.tensor(values, device=pixels.device)[:, None, None]
