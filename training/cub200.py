"""CUB-200-2011, extracted once from its authors' archive: 11,788 photographs of 200 birds."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from training.archives import Archive
from training.errors import UsageError
from training.squares import Photos, require_pillow

ARCHIVE = Archive(
    "CUB_200_2011.tgz",
    "97eceeb196236b17998738112f37df78",
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "1.1 GB",
)
FOLDER = "CUB_200_2011"
CLASSES = 200


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
