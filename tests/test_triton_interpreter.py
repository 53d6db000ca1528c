"""Runs the interpreter's tests in processes of their own: Triton decides when it is imported whether it interprets.

A process for each file, side by side: the interpreter takes minutes, on one thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icd_kernels.backends.triton import TRITON

FOLDER = Path(__file__).parent / "interpreter"
OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "--no-header", "-W", "ignore"),
    # A program that waits for what never comes ends the run, with its place in the code.
    *("-o", "faulthandler_timeout=600", "-o", "faulthandler_exit_on_timeout=true"),
)


def test_interpreter_suite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if TRITON.missing is not None:
        pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
    running = [(started(path, tmp_path / path.stem), path.stem) for path in sorted(FOLDER.glob("test_*.py"))]
    try:
        codes = {name: process.wait() for process, name in running}
    finally:
        for process, _ in running:
            process.kill()
    outputs = {name: (tmp_path / name).read_text() for name in codes}
    with capsys.disabled():
        for name, output in outputs.items():
            print("", name, *output.splitlines()[-8:], sep="\n")
    assert not any(codes.values()), "\n".join(outputs[name][-20000:] for name, code in codes.items() if code)


def started(path: Path, output: Path) -> subprocess.Popen[bytes]:
    """The tests of one file, under way."""
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, str(path)],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            cwd=FOLDER.parent.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
