"""Files that are whole whenever one looks: written beside their place, then moved into it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from training.errors import UsageError


def save(path: Path, content: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings and containers of them, for :func:`load`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write(path, buffer.getvalue())


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads what :func:`save` wrote. Nothing but data is unpickled: such a file cannot run code."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"{path} is not a checkpoint of this script ({error}): delete it and start again") from error


def write(path: Path, content: bytes | str) -> None:
    """Replaces the file at once: after a kill or a power cut it holds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a power cut does not undo the move
    finally:
        os.close(folder)
