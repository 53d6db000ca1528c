"""What a run has done so far, in one file that every epoch replaces at once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from training import checkpoint
from training.errors import UsageError

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
STUDENTS = "students/*-seed*-*.pt"
"""The students' weights (students.py)."""
RESULT_FILES = {
    METRICS_FILE: "every epoch of every student",
    "curves.png": "top-1 and losses over the epochs",
    "grams.png": "Gram matrices of teacher and student, before and after training",
    "summary.json": "the table's numbers and more, with all settings",
    "compare.png": "the methods' top-1 beside each other",
    "table.txt": "the table above",
    "table.md": "the table in Markdown, with the differences from the baseline",
}

Row = dict[str, Any]
"""One line of metrics.jsonl: one epoch of one student."""


@dataclass
class State:
    """The rows so far, the student under way, and what the Gram figure shows.

    metrics.jsonl is a copy of the rows for the user: it is rewritten from them, so no kill can tear or double a line.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    trainer: dict[str, Any] | None = None
    """The unfinished student's Trainer.state()."""
    probes: dict[str, Tensor] = field(default_factory=dict)
    """Local logits (n, K, N) of the probe images, on the CPU, by "teacher", "before" and each method."""

    def save(self) -> None:
        """Writes everything so far to the file."""
        content = {name: getattr(self, name) for name in ("settings", "rows", "trainer", "probes")}
        checkpoint.save(self.folder / STATE_FILE, content)
        lines = (json.dumps(row) + "\n" for row in self.rows)
        checkpoint.write(self.folder / METRICS_FILE, "".join(lines))


def open_state(folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> State:
    """A new run's state, or with `resume` that of the run in the folder, which must have the same settings."""
    path = folder / STATE_FILE
    for name in (STATE_FILE, *RESULT_FILES, STUDENTS):
        for temporary in folder.glob(f"{name}.*.tmp"):  # left by a kill in the middle of a write
            temporary.unlink()
    if path.exists() and resume:
        saved = checkpoint.load(path)
        _check_same(folder, saved["settings"], settings)
        state = State(folder, **saved)
    elif path.exists() and not overwrite:
        raise UsageError(
            f"{folder} already holds a run. Go on with it (or show its results again) with --resume, "
            "delete its results and start afresh with --overwrite, or choose another --out"
        )
    else:
        for written in (*(folder / name for name in (STATE_FILE, *RESULT_FILES)), *folder.glob(STUDENTS)):
            written.unlink(missing_ok=True)
        state = State(folder, settings)
    state.save()
    return state


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = [
        _difference(name, before.get(name), now.get(name))
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if different:
        raise UsageError(
            f"--resume: the run in {folder} has other settings: {'; '.join(different)}. "
            "Give the same, start afresh with --overwrite, or choose another --out"
        )


def _difference(name: str, before: Any, now: Any) -> str:
    """In the words of the command line; the number of processes is torchrun's to set."""
    if name == "processes":
        return f"it was started {_launcher(before)}, now {_launcher(now)}"
    return f"--{name.replace('_', '-')} was {before}, now {now}"


def _launcher(processes: int) -> str:
    return "without torchrun" if processes == 1 else f"with torchrun --nproc-per-node {processes}"
