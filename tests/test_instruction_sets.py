"""The numeric tests of `cpp` on the instruction sets and thread counts that this process does not take.

A sum's rounding depends on how many lanes share it, and a processor takes only its best instruction set unless told
otherwise: each set runs in a process of its own, with another number of threads than the tests beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import COMPILED
from said import say

FOLDER = Path(__file__).parent
NUMERIC = (
    "test_definition", "test_dtypes", "test_gradients", "test_hard_numbers", "test_identities", "test_linear_class",
    "test_properties", "test_threads", "test_workloads", "objectives/test_derivatives", "objectives/test_row_losses",
    "test_symmetric_class", "test_region_features",
)  # fmt: skip
"""Files whose tests compare numbers of every compiled CPU backend."""
OF_CPP = ("test_row_losses", "test_symmetric_class")
"""Those of them that are of cpp alone, and do not name it in every test."""
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore")
WHICH = "import icd_kernels, torch; print(torch.ops.icd_kernels.cpu_instruction_set())"


@pytest.mark.thorough
@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(("instruction_set", "threads"), [("baseline", 4), ("avx2", 2), ("avx512", 1)])
def test_numbers(backend: str, instruction_set: str, threads: int) -> None:
    if "ICD_KERNELS_ISA" in os.environ:
        pytest.skip("this process was told by ICD_KERNELS_ISA what to take")
    if threads == 1 and instruction_set == torch.ops.icd_kernels.cpu_instruction_set():
        pytest.skip(f"{instruction_set} with 1 thread is what this process itself takes")
    taken = python(instruction_set, threads, "-c", WHICH)
    assert taken.returncode == 0, taken.stderr
    if taken.stdout.strip() != instruction_set:
        pytest.skip(f"this processor has no {instruction_set}")
    files = [FOLDER / f"{name}.py" for name in NUMERIC]
    chosen = f"({' or '.join((backend, *OF_CPP))}) and not emulated"
    tests = python(instruction_set, threads, *PYTEST, "-k", chosen, *files)
    say(f"numeric tests of {backend}, {instruction_set}, {threads} threads: {tests.stdout.splitlines()[-1]}")
    assert tests.returncode == 0, tests.stdout[-20000:]


def python(instruction_set: str, threads: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python in a process that takes this instruction set and this many threads."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "ICD_KERNELS_ISA": instruction_set, "ICD_KERNELS_TEST_THREADS": str(threads)},
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_numeric_file_is_forgotten() -> None:
    """Every file that judges backends by numbers is in the list."""
    judging = {
        str(path.relative_to(FOLDER).with_suffix(""))
        for path in FOLDER.rglob("test_*.py")
        if path.parent.name not in ("interpreter", "gpu") and "\nfrom judging import" in path.read_text()
    }
    emulated = {"test_cuda_emulated", "test_cuda_linear"}
    assert judging - emulated <= set(NUMERIC), "add the file to NUMERIC"
