"""Data sets by the names of --data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from training import cifar100, cub200, data
from training.data import DataSet
from training.options import DATA, FOLDER_PREFIX, Options
from training.photographs import Photographs, read_folder


def load(options: Options, device: torch.device) -> DataSet:
    """The data set of --data.

    Raises:
        UsageError: something that it needs is not there.
    """
    name = options.data
    if name.startswith(FOLDER_PREFIX):
        return read_folder(Path(name.removeprefix(FOLDER_PREFIX)), device, options.workers)
    if name == "cifar100":
        return dataclasses.replace(cifar100.load(options.data_folder, device), augment=cifar100.augmented)
    if name == "cub200":
        birds = cub200.load(options.data_folder)
        return Photographs(birds.train, birds.test, device, options.workers)
    assert name in DATA
    return data.load(name, device)
