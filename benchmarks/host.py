"""The host's part of a call of the Triton backend, without a GPU: how long Python takes until all is launched.

    python -m benchmarks.host [--calls N]

Checks, autograd, operators, plans, small allocations on the CPU, and Triton's launch up to the driver, where a stub
takes over (stub_driver.py): not what a GPU's own driver and allocator add. Processor time of the calling thread.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from statistics import quantiles

import torch
from torch import Tensor

from benchmarks import stub_driver
from benchmarks.machine import facts
from benchmarks.workloads import FORMS
from icd_kernels.checks import check_icd_inputs
from icd_kernels.options import make_options

BATCH, CLASSES, TEACHER, STUDENT = 4, 20, (32, 14), (64, 7)
"""Small, so that memory of the CPU costs nothing: sizes do not matter to the host's part."""
WARM_UP = 50


def network(channels: int, side: int, *, trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((BATCH, channels, side, side), (CLASSES, channels), (CLASSES,))
    feature, weight, bias = (torch.randn(shape).requires_grad_(trained) for shape in shapes)
    return feature, weight, bias


def times(form: str, calls: int) -> dict[str, list[float]]:
    """Microseconds of every forward and backward."""
    student, teacher = network(*STUDENT, trained=True), network(*TEACHER, trained=False)
    upstream = torch.ones(())

    def forward() -> Tensor:  # what icd_kernels.icd_loss does
        options = make_options(**FORMS[form])
        check_icd_inputs(*student, *teacher)
        return stub_driver.loss((*student, *teacher), options)

    found: dict[str, list[float]] = {"forward": [], "backward": []}
    for call in range(WARM_UP + calls):
        start = time.thread_time_ns()
        loss = forward()
        middle = time.thread_time_ns()
        torch.autograd.grad(loss, student, upstream)
        stop = time.thread_time_ns()
        if call >= WARM_UP:
            found["forward"].append((middle - start) / 1e3)
            found["backward"].append((stop - middle) / 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="calls of each form (default: 2,000)")
    calls = parser.parse_args().calls
    stub_driver.install()
    machine = facts(torch.get_num_threads())
    print(f"{machine['cpu']}, Python {machine['python']}, torch {machine['torch']}, Triton {version('triton')}")
    for form in FORMS:
        for part, found in times(form, calls).items():
            low, middle, high = quantiles(found, n=4)
            print(f"{form:8} {part:8} {middle:6.1f} µs (quartiles {low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
