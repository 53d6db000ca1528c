"""CIFAR-100 as torchvision keeps it: pickles of NumPy arrays, checked by MD5 and read without running any code."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.archives import Archive
from training.errors import UsageError

ARCHIVE = Archive(
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "169 MB",
)
FOLDER = "cifar-100-python"
MD5 = {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}
"""Of the files that are extracted."""

Part = tuple[Tensor, Tensor]
"""Pixels [n, 3, 32, 32] uint8 and fine classes [n] int64."""


def from_archive(folder: Path) -> tuple[Part, Part]:
    """Training and test images of the archive in `folder`.

    Raises:
        UsageError: it is not what was published.
    """
    with tarfile.open(ARCHIVE.checked(folder)) as archive:
        train, test = (archive.extractfile(f"{FOLDER}/{part}") for part in MD5)
        assert train is not None  # regular files, by the archive's checksum
        assert test is not None
        return _read(train.read()), _read(test.read())


def from_folder(folder: Path) -> tuple[Part, Part]:
    """Likewise, of the files that were extracted of it.

    Raises:
        UsageError: one is missing, or is not what was published.
    """
    train, test = (_checked(folder / FOLDER / part, md5) for part, md5 in MD5.items())
    return _read(train), _read(test)


def _checked(file: Path, md5: str) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file.parent} is not whole ({error}): extract {ARCHIVE.name} again") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UsageError(
            f"{file} is not the published file, or was cut short: expected MD5 {md5}, got {found}: extract "
            f"{ARCHIVE.name} again"
        )
    return content


def _read(content: bytes) -> Part:
    saved = _Arrays(io.BytesIO(content), encoding="bytes").load()
    return torch.from_numpy(saved[b"data"]).reshape(-1, 3, 32, 32), torch.tensor(saved[b"fine_labels"])


class _Arrays(pickle.Unpickler):
    """Makes containers, numbers, strings and NumPy arrays; of all else a pickle may ask for, nothing."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        makers = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        try:
            return makers[module.rpartition(".")[2], name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array") from None
