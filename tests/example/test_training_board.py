"""What --tensorboard writes, with a writer in place of TensorBoard's and with the real one where it is installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from training.board import Board  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.options import parse  # noqa: E402


def rows() -> list[dict[str, Any]]:
    return [
        {"method": method, "seed": 1, "epoch": epoch, "train_loss": 0.5, "test_top1": 10.0 * epoch}
        for method in ("none", "kd")
        for epoch in (2, 3)
    ]


class _Writer:
    """Remembers what it was told."""

    log: list[tuple[Any, ...]]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.log.append(("open", Path(folder).name, purge_step))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.log.append((name, value, step))

    def flush(self) -> None:
        self.log.append(("flush",))

    def close(self) -> None:
        self.log.append(("close",))


def test_each_student_has_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(_Writer, "log", [], raising=False)
    board = Board(tmp_path)
    for row in rows():
        board.add(row)
    board.close()
    first = [("train_loss", 0.5, 2), ("test_top1", 20.0, 2), ("flush",)]
    second = [("train_loss", 0.5, 3), ("test_top1", 30.0, 3), ("flush",)]
    students = [[("open", f"{method}-seed1", 2), *first, *second, ("close",)] for method in ("none", "kd")]
    assert _Writer.log == [*students[0], *students[1]]


def test_the_real_writer(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install tensorboard")
    board = Board(tmp_path)
    for row in rows():
        board.add(row)
    board.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kd-seed1", "none-seed1"]
    assert all(any(folder.glob("events.*")) for folder in tmp_path.iterdir())


def test_off_unless_asked_for(tmp_path: Path) -> None:
    assert not parse([]).tensorboard
    board = Board(None)
    board.add(rows()[0])
    board.close()


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"--tensorboard needs .*python -m pip install tensorboard"):
        Board(tmp_path)
