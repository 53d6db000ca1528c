"""Unit tests in C++ of the headers that the CPU and the CUDA kernels share, under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "native" / "test_common.cpp"
FLAGS = ["-std=c++20", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def test_shared_headers(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler (c++) on the PATH")
    program = tmp_path / "test_common"
    subprocess.run([compiler, *FLAGS, *SANITIZERS, str(SOURCE), "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
