"""Extra peak memory of a rival on the CPU: how far the process's resident set grows above the tensors it was given.

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
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.rivals import CPU_RIVALS, EAGER, Rival
from benchmarks.workloads import FORMS, Workload
from icd_kernels.geometry import cell_count
from icd_kernels.options import DEFAULT_SCALES

EAGER_CLASS_TENSORS = 5.7
"""Tensors of B·N·K² numbers that eager PyTorch holds at once in class form, as measured where it fits."""


class Memory(NamedTuple):
    """Bytes above the tensors given: at the highest, and of the gradients among them."""

    extra_peak: int
    gradients: int
    is_measured: bool = True


def measure(workload: Workload, form: str, rival: Rival, threads: int) -> Memory:
    """The extra peak memory of one forward and backward, in float32; computed where eager PyTorch would not fit.

    Raises:
        subprocess.CalledProcessError: the measuring process failed.
    """
    if rival is EAGER and eager_need(workload, form) > 0.8 * _available():
        return Memory(eager_need(workload, form), _gradient_bytes(workload), is_measured=False)
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps([workload, form, rival.name, threads])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, check=True, text=True, stdout=subprocess.PIPE)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def eager_need(workload: Workload, form: str) -> int:
    """Bytes eager PyTorch needs for its Gram matrices in class form; 0 for the others, whose Grams are small."""
    if FORMS[form]["gram"] != "class":
        return 0
    return int(EAGER_CLASS_TENSORS * gram_bytes(workload))


def gram_bytes(workload: Workload) -> int:
    """Bytes of every image's and cell's K x K Gram matrix in float32."""
    return 4 * workload.batch * cell_count(DEFAULT_SCALES) * workload.classes**2


def _measure_here(workload: Workload, form: str, rival: Rival) -> Memory:
    options = FORMS[form]
    inputs = workload.inputs()
    step = rival.forward_backward(inputs, **options)
    if rival.is_compiled:
        step()
    else:
        rival.forward_backward(workload.with_batch(1).inputs(), **options)()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    results = step()
    extra = _status("VmHWM") - before
    return Memory(extra, sum(gradient.nbytes for gradient in results[1:]))


def _gradient_bytes(workload: Workload) -> int:
    channels, height, width = workload.student
    return 4 * (workload.batch * channels * height * width + workload.classes * (channels + 1))


def _status(name: str) -> int:
    return _kilobytes(Path("/proc/self/status"), name)


def _available() -> int:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _kilobytes(path: Path, name: str) -> int:
    """The bytes that a "name: 123 kB" line of `path` tells."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{path} has no {name}; the memory figures need Linux")
    return int(match[1]) * 1024


def main(argument: str) -> None:
    shape, form, rival_name, threads = json.loads(argument)
    torch.set_num_threads(threads)
    rival = next(rival for rival in CPU_RIVALS if rival.name == rival_name)
    title, batch, teacher, student, classes = shape
    workload = Workload(title, batch, tuple(teacher), tuple(student), classes)
    print(json.dumps(_measure_here(workload, form, rival)._asdict()))


if __name__ == "__main__":
    main(sys.argv[1])
