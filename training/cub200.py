"""CUB-200-2011, extracted once from its authors' archive: 11,788 photographs of 200 birds, decoded when asked for."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.archives import Archive
from training.errors import UsageError
from training.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHIVE = Archive(
    "CUB_200_2011.tgz",
    "97eceeb196236b17998738112f37df78",
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "1.1 GB",
)
FOLDER = "CUB_200_2011"
CLASSES = 200

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


class Birds(NamedTuple):
    """The official split: 5,994 and 5,794 photographs."""

    train: Photos
    test: Photos


def load(folder: Path) -> Birds:
    """The split of the archive in `folder`, which is extracted beside it the first time.

    Raises:
        UsageError: the archive is missing or another file, what was extracted is not whole, or there is no Pillow.
    """
    require_pillow("CUB-200-2011")
    extracted = folder / FOLDER
    if not extracted.is_dir():
        _extract(ARCHIVE.checked(folder), extracted)
    try:
        return _read_split(extracted)
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(
            f"{extracted} is not whole ({error}): delete it and start again, to extract {ARCHIVE.name} anew"
        ) from error


def epoch_batches(
    photos: Photos, batch_size: int, seed: int, epoch: int, device: torch.device, workers: int = 0
) -> Batches:
    """One epoch, in an order, with crops and mirrored images that depend on (seed, epoch) alone.

    The short side is resized to 256 pixels; a square of 224 is cut out at random and mirrored half of the time. Images
    that do not fill a batch are left out. `workers` processes decode; 0 decodes here.
    """
    draws = generator("epoch", seed, epoch)
    shuffled = photos.at(torch.randperm(len(photos.files), generator=draws))
    squares = _Squares(shuffled, torch.rand(len(photos.files), 3, generator=draws))
    return _batches(DataLoader(squares, batch_size, num_workers=workers, drop_last=True), device)


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
    for pixels, labels in loader:
        yield pixels.to(device).float().div_(255).sub_(mean).div_(deviation), labels.to(device)


def _resized(file: Path) -> Image:
    """RGB, its short side 256 pixels."""
    from PIL import Image

    with Image.open(file) as image:
        width, height = (SHORT_SIDE * length // min(image.size) for length in image.size)
        return image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)


def _read_split(extracted: Path) -> Birds:
    labels, is_train = (
        _read_table(extracted / "image_class_labels.txt"),
        _read_table(extracted / "train_test_split.txt"),
    )
    images = _read_table(extracted / "images.txt")
    parts: dict[str, list[tuple[Path, int]]] = {"1": [], "0": []}
    for number, file in images.items():
        parts[is_train[number]].append((extracted / "images" / file, int(labels[number]) - 1))
    return Birds(*(_photos(parts[part]) for part in ("1", "0")))


def _photos(rows: list[tuple[Path, int]]) -> Photos:
    return Photos(tuple(file for file, _ in rows), torch.tensor([label for _, label in rows], dtype=torch.int64))


def _read_table(path: Path) -> dict[str, str]:
    """Lines of an image's number and what is said of it."""
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def _extract(path: Path, target: Path) -> None:
    """Extracts photographs and lists; `target` is there only when it is whole."""
    if not hasattr(tarfile, "data_filter"):
        raise UsageError("extracting an archive safely needs Python 3.10.12, 3.11.4 or newer: update Python")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(path) as archive:
            archive.extractall(temporary, members=_wanted(archive), filter="data")  # refuses paths that lead outside
        os.replace(temporary / FOLDER, target)
    except tarfile.TarError as error:
        raise UsageError(f"{path} cannot be extracted: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _wanted(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    lists = tuple(f"{FOLDER}/{name}.txt" for name in ("images", "image_class_labels", "train_test_split"))
    return (member for member in archive if member.name in lists or member.name.startswith(f"{FOLDER}/images/"))
