"""The C++ code under AddressSanitizer and UndefinedBehaviorSanitizer, once for each instruction set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icd_kernels.options import GRAMS, NORMALIZATIONS, PYRAMIDS, REDUCTIONS

ROOT = Path(__file__).resolve().parent.parent
CASES = Path(__file__).parent / "support" / "sanitized_cases.py"
pytestmark = pytest.mark.thorough
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"


@pytest.fixture(scope="module")
def sanitized_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with its extension compiled under the sanitizers, in a folder of its own."""
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("needs g++ on Linux, whose sanitizer runtime can be preloaded")
    folder = tmp_path_factory.mktemp("sanitized")
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", folder / "build", "--build-lib", folder / "lib"],
        cwd=ROOT,
        env={
            **os.environ,
            "CC": "gcc",
            "CXX": "g++",
            "CFLAGS": FLAGS,
            "LDFLAGS": FLAGS,
            "ICD_KERNELS_EXTENSION": "1",
            "ICD_KERNELS_CUDA": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder / "lib"


def runtime(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_every_option_is_clean_under_the_sanitizers(sanitized_build: Path, instruction_set: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-P", CASES] if sys.version_info >= (3, 11) else [sys.executable, CASES],
        cwd=sanitized_build,
        env={
            **os.environ,
            "PYTHONPATH": str(sanitized_build),
            "LD_PRELOAD": f"{runtime('libasan.so')}:{runtime('libubsan.so')}:{runtime('libstdc++.so')}",
            "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter and torch hold memory to the end
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "ICD_KERNELS_ISA": instruction_set,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    count = len(GRAMS) * len(PYRAMIDS) * len(NORMALIZATIONS) * len(REDUCTIONS)
    assert f"{count} sanitized cases" in finished.stdout
