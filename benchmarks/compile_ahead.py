"""Fills Triton's compile cache for `make gpu`, on a machine without a GPU, so that no minute there goes to compiling.

    TRITON_CACHE_DIR=build/triton-cache python -m benchmarks.compile_ahead [--capability 90]

Runs the calls of `benchmarks.ten_minutes` on tensors of the CPU with a driver that compiles and launches nothing
(stub_driver). The cache serves a machine with the same Triton, the same build of it for the same Python, and that GPU.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib.metadata import version

import torch

from benchmarks import gpu_trace, stub_driver
from benchmarks.cases import PRECISIONS, Case
from benchmarks.ten_minutes import CASES, KNOB_CASES, TRACE_CASES, changed, settings
from benchmarks.workloads import Inputs
from icd_kernels.options import make_options


def step(case: Case) -> None:
    """Forward, backward and a forward alone, as the run makes them."""
    torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
    inputs = Inputs(*(torch.empty_like(part) for part in case.inputs()))
    for leaf in inputs.leaves():
        leaf.requires_grad_()
    tensors = (*inputs.leaves(), inputs.teacher_features, inputs.teacher_weight, inputs.teacher_bias)
    value = stub_driver.loss(tensors, make_options(**case.options))
    torch.autograd.grad(value, inputs.leaves())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="of the GPU (default: 90, an H100's)")
    stub_driver.install(capability=parser.parse_args().capability)
    print(f"==> Compiling with Triton {version('triton')} into {os.environ.get('TRITON_CACHE_DIR', 'its own cache')}")
    start = time.monotonic()
    for case in CASES:
        step(case)
        print(f"[{time.monotonic() - start:4.0f} s] {case.label}", flush=True)
    for case in TRACE_CASES:
        with gpu_trace.traced():
            step(case)
        print(f"[{time.monotonic() - start:4.0f} s] {case.label}, traced", flush=True)
    for case in KNOB_CASES:
        for name, value in settings():
            with changed(name, value):
                step(case)
            print(f"[{time.monotonic() - start:4.0f} s] {case.label}, {name} {value}", flush=True)


if __name__ == "__main__":
    main()
