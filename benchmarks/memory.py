"""Extra peak memory on the CPU: how far the process's resident set grows above the tensors a rival was given.

Measured by Linux in a fresh process: the kernel keeps the highest resident set (VmHWM), which is set back to the
present one (/proc/self/clear_refs) just before the step. Nothing is sampled, so no short peak is missed. Freed blocks
must leave the resident set, so glibc is told to give every block of 64 KiB or more its own mapping. A step on one image
comes first, so that code pages and thread pools do not count; a `torch.compile`d rival does the whole step first, since
compiling is not the step. The gradients the step returns do count.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cases import Case, from_facts
from benchmarks.rivals import RIVALS, Rival

ROOT = Path(__file__).parents[1]
CLASS_TENSORS = {"eager": 5.8, "compiled": 1.8, "compiled max-autotune": 1.8}
"""Tensors of B·N·K² numbers that plain PyTorch holds at once in class form, as measured where they fit."""
USABLE = 0.8
"""The share of the free memory that a rival may need and still be run."""


class Memory(NamedTuple):
    """Bytes above the given tensors: the peak, and how many of them are gradients."""

    extra_peak: int
    gradients: int


def needed(case: Case, rival: Rival) -> int:
    """Bytes the rival's Gram matrices in class form take; 0 where they are small."""
    return int(CLASS_TENSORS.get(rival.name, 0) * case.gram_bytes)


def fits(case: Case, rival: Rival) -> bool:
    return needed(case, rival) < USABLE * available()


def available() -> int:
    """Bytes that processes may still take."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def measure(case: Case, rival: Rival, threads: int) -> Memory:
    """The extra peak memory of one forward and backward.

    Raises:
        subprocess.CalledProcessError: the measuring process failed.
    """
    return Memory(**measured_apart("benchmarks.memory", [case.facts(), rival.name, threads]))


def measured_apart(module: str, arguments: Any) -> Any:
    """What `python -m module ARGUMENTS` prints in its last line, both as JSON, in a process whose memory is its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def extra_peak(step: Callable[[], object]) -> tuple[int, Any]:
    """Bytes the resident set grows by at most during `step`, and what it returned."""
    before = _kilobytes(Path("/proc/self/status"), "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    results = step()
    return _kilobytes(Path("/proc/self/status"), "VmHWM") - before, results


def _measure_here(case: Case, rival: Rival) -> Memory:
    step = rival.forward_backward(case.inputs(), **case.options)
    if rival.compile_mode:
        step()
    else:
        one = case._replace(workload=case.workload.with_batch(1))
        rival.forward_backward(one.inputs(), **case.options)()
    extra, results = extra_peak(step)
    return Memory(extra, sum(gradient.nbytes for gradient in results[1:]))


def _kilobytes(path: Path, name: str) -> int:
    """The bytes that a "name: 123 kB" line of `path` tells."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{path} has no {name}; the memory figures need Linux")
    return int(match[1]) * 1024


def main(argument: str) -> None:
    facts, rival, threads = json.loads(argument)
    torch.set_num_threads(threads)
    print(json.dumps(_measure_here(from_facts(facts), RIVALS[rival])._asdict()))


if __name__ == "__main__":
    main(sys.argv[1])
