"""Runs the tests of launches that go nowhere in a process of their own: Triton keeps what it compiled for a driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from icd_kernels.backends.triton import TRITON

FOLDER = Path(__file__).parent / "stubbed"


def test_stubbed_launches() -> None:
    if TRITON.missing is not None:
        pytest.skip(f"backend 'triton' is missing: {TRITON.missing}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER)],
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
