"""A GPU's constants that decide how fast the launches can be: the gap between launches, atomics, powers of two."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.gpu import graph_seconds
from icd_kernels.backends.triton.exponential import exp2

CHAIN = 256
"""Operations that wait for each other, in one program."""
POWERS = 4096


@triton.jit
def empty_kernel(p_out):
    """Nothing but a launch."""


@triton.jit
def atomic_kernel(p_counter, COUNT: tl.constexpr):
    """COUNT acquire-release additions, each waiting for the one before."""
    seen = tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu")
    for _ in range(COUNT):
        seen = tl.atomic_add(p_counter + seen % 2, 1, sem="acq_rel", scope="gpu")


@triton.jit
def power_kernel(p_out, COUNT: tl.constexpr):
    """COUNT powers of two for each of eight numbers of each thread."""
    x = tl.arange(0, 1024).to(tl.float32) * 1e-3
    for _ in range(COUNT):
        x = exp2(x - 1, True)
    tl.store(p_out + tl.arange(0, 1024), x)


def measured() -> Iterator[dict[str, Any]]:
    """Each constant with its unit in its name."""
    numbers = torch.zeros(1024, device="cuda")
    counter = torch.zeros(2, dtype=torch.int32, device="cuda")
    for chained in (False, True):
        launch = partial(_launched, empty_kernel, 1, numbers, launch_pdl=chained)
        name = "launch_gap_seconds_chained" if chained else "launch_gap_seconds"
        yield {name: graph_seconds([launch] * 100, replays=10)["median"]}
    atomics = graph_seconds([partial(_launched, atomic_kernel, 1, counter, CHAIN)], replays=10)
    yield {"atomic_seconds": atomics["median"] / CHAIN}
    programs = 8 * torch.cuda.get_device_properties(0).multi_processor_count
    powers = graph_seconds([partial(_launched, power_kernel, programs, numbers, POWERS)], replays=10)
    yield {"powers_of_two_per_second": programs * 1024 * POWERS / powers["median"]}


def _launched(kernel: Any, programs: int, *args: Any, **options: Any) -> tuple[torch.Tensor, ...]:
    kernel[(programs,)](*args, **options)
    return ()
