"""Squares of 224 pixels cut out of photographs and decoded batch by batch: at random to train on, else the middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.data import WHOLE
from training.errors import UsageError
from training.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image

SHORT_SIDE = 256
SIDE = 224

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels by channel, black 0 and white 1."""

Batches = Iterator[tuple[Tensor, Tensor]]
"""Images (B, 3, 224, 224) float32, normalised, and labels (B,) int64."""


class Photos(NamedTuple):
    """Files and what is on them."""

    files: tuple[Path, ...]
    labels: Tensor
    """(n,) int64, from 0."""

    def at(self, rows: Tensor) -> Photos:
        """Those of the row numbers (m,), such as `data.balanced_subset` draws."""
        return Photos(tuple(self.files[row] for row in rows.tolist()), self.labels[rows])


def epoch_batches(
    photos: Photos,
    batch_size: int,
    seed: int,
    epoch: int,
    device: torch.device,
    workers: int = 0,
    share: slice = WHOLE,
    *,
    is_changed: bool = True,
) -> Batches:
    """One epoch, in an order, with crops and mirrored images that depend on (seed, epoch) alone.

    The short side is resized to 256 pixels; a square of 224 is cut out at random and mirrored half of the time, or
    without `is_changed` cut out of the middle. Images that do not fill a batch are left out. `share` is what of every
    batch is given, and no more is decoded. `workers` processes decode; 0 decodes here.
    """
    count = len(photos.files)
    draws = generator("epoch", seed, epoch)
    shuffled = photos.at(torch.randperm(count, generator=draws))
    squares = _Squares(shuffled, torch.rand(count, 3, generator=draws) if is_changed else None)
    batches = torch.arange(count).split(batch_size)
    shares = [batch[share].tolist() for batch in batches if len(batch) == batch_size]
    return _batches(DataLoader(squares, batch_sampler=shares, num_workers=workers), device)


def ordered_batches(photos: Photos, batch_size: int, device: torch.device, workers: int = 0) -> Batches:
    """All images in their order: the short side resized to 256 pixels, the square of 224 in the middle."""
    return _batches(DataLoader(_Squares(photos), batch_size, num_workers=workers), device)


def require_pillow(what: str) -> None:
    """Raises a UsageError where Pillow, which `what` needs, is missing."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{what} needs the package Pillow, which could not be imported ({error}). "
            "Install it: python -m pip install pillow"
        ) from error


def readable_endings() -> frozenset[str]:
    """Of the files that Pillow reads as images, such as ".jpg"."""
    from PIL import Image

    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN)


class _Squares(Dataset[tuple[Tensor, int]]):
    """Bytes [3, 224, 224] and label of every photograph."""

    def __init__(self, photos: Photos, draws: Tensor | None = None) -> None:
        self.files = photos.files
        self.labels: list[int] = photos.labels.tolist()
        self.draws = draws
        """[n, 3] from 0 to 1: how far down, how far right, whether mirrored; None is the middle."""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = _resized(self.files[row])
        rooms = image.height - SIDE, image.width - SIDE
        if self.draws is None:
            (top, left), is_mirrored = (round(room / 2) for room in rooms), False
        else:
            down, right, side = self.draws[row].tolist()
            (top, left), is_mirrored = (int(down * (rooms[0] + 1)), int(right * (rooms[1] + 1))), side < 0.5
        square = image.crop((left, top, left + SIDE, top + SIDE))
        pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1)
        return pixels.flip(2) if is_mirrored else pixels, self.labels[row]


def _batches(loader: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Batches:
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, DEVIATION))
    try:
        for pixels, labels in loader:
            yield pixels.to(device).float().div_(255).sub_(mean).div_(deviation), labels.to(device)
    except UsageError as error:  # a worker's comes with its traceback before what it says
        raise UsageError(str(error).rsplit("UsageError: ", 1)[-1].strip()) from error


def _resized(file: Path) -> Image:
    """RGB, its short side 256 pixels."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = (SHORT_SIDE * length // min(image.size) for length in image.size)
            return _rgb(image).resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{file} is not an image that Pillow can read ({error}): mend it, or take it away") from error


def _rgb(image: Image) -> Image:
    """Eight bits a channel. 16-bit grey keeps its range: Pillow would cut off all above 255."""
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256).convert("L")
    return image.convert("RGB")
