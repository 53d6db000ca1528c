"""Runs the interpreter's tests in a process of their own: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icd_kernels.backends.triton import TRITON

FOLDER = Path(__file__).parent / "interpreter"


def test_interpreter_suite(capsys: pytest.CaptureFixture[str]) -> None:
    if TRITON.missing is not None:
        pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    with capsys.disabled():
        print("", *done.stdout.splitlines()[-12:], sep="\n")
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
