"""The rows for TensorBoard, while the run goes on."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from training.errors import UsageError
from training.state import Row


class Board:
    """A log for each student in a folder of its own; in a folder of None there is none.

    Raises:
        UsageError: the package tensorboard is missing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.student = ""
        self.writer: Any = None
        if folder is not None:
            try:
                self.make_writer = import_module("torch.utils.tensorboard").SummaryWriter
            except ImportError as error:
                raise UsageError(
                    f"--tensorboard needs the package tensorboard, which could not be imported ({error}). "
                    "Install it: python -m pip install tensorboard"
                ) from error

    def add(self, row: Row) -> None:
        """Writes an epoch. What an earlier run wrote of this epoch or a later one of the student is hidden by it."""
        if self.folder is None:
            return
        student = f"{row['method']}-seed{row['seed']}"
        if student != self.student:
            self.close()
            self.student = student
            self.writer = self.make_writer(str(self.folder / student), purge_step=row["epoch"])
        for name, value in row.items():
            if name not in ("method", "seed", "epoch"):
                self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None
