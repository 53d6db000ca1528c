"""Runs the interpreter's tests in processes of their own: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts import SHARE
from said import say

from icd_kernels.backends.triton import TRITON

FOLDER = Path(__file__).parent / "interpreter"
OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "-W", "ignore"),
    # A program that waits for what never comes ends the run, with its place in the code.
    *("-o", "faulthandler_timeout=600", "-o", "faulthandler_exit_on_timeout=true"),
)


SHARES = {"test_interpreted_gradients.py": 5, "test_interpreter.py": 4, "test_interpreted_linear.py": 2}
"""Files that take minutes, and into how many shares they are cut; the others run whole."""


def pieces() -> Iterator[str]:
    """Every share of every file: "1/4 of test_interpreter.py"."""
    for path in sorted(FOLDER.glob("test_*.py"), key=lambda path: -SHARES.get(path.name, 1)):
        of = SHARES.get(path.name, 1)
        yield from (f"{number}/{of} of {path.name}" for number in range(1, of + 1))


@pytest.mark.thorough
@pytest.mark.parametrize("piece", list(pieces()))
def test_interpreter_suite(piece: str) -> None:
    if TRITON.missing is not None:
        pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
    share, _, name = piece.partition(" of ")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, str(FOLDER / name)],
        env={**os.environ, "TRITON_INTERPRET": "1", SHARE: share},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    say(f"interpreter, {piece}: {lines[-1] if lines else 'nothing was printed'}")
    assert ended.returncode == 0, ended.stdout[-20000:] + ended.stderr[-2000:]
