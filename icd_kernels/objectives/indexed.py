"""A data set whose samples know their position: what CRD's memory is addressed by."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class IndexedDataset(Dataset[tuple[Any, ...]]):
    """The samples of a map-style data set with their position behind them: (image, target) → (image, target, index).

    A `DataLoader` over it yields the third entry as an int64 tensor (B,), which goes to an objective as `indices`.
    Wrap the set that is trained on, after any `Subset` or split: positions then run from 0 to `len(dataset)` - 1.

    Raises:
        TypeError: a sample is not a tuple or list.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style data sets have a length

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        position = range(len(self))[index]  # as a list: negative ones from the end, IndexError beyond it
        sample = self.dataset[position]
        if not isinstance(sample, (tuple, list)):
            raise TypeError(f"dataset must give tuples such as (image, target), got {type(sample).__name__}")
        return *sample, position
