"""A driver for Triton that compiles for an H100 and launches nothing: the host's part of a call, without a GPU.

CPU tensors stand in for the GPU's. What the kernels would write stays as the allocator left it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from icd_kernels.backends.triton import LIBRARY, TRITON
from icd_kernels.backends.triton.operators import implement

Launched = Callable[[Any, tuple[Any, ...]], None]


def install(launched: Launched = lambda compiled, args: None) -> None:
    """For the rest of this process; `launched` is called with the source of every launched kernel and its arguments."""
    driver.set_active(_Driver(launched))
    assert LIBRARY is not None, TRITON.missing
    implement(LIBRARY, "CPU")


class _Driver:
    """What Triton's dispatch asks of a driver."""

    def __init__(self, launched: Launched) -> None:
        self.utils = _Utilities()
        self.launcher_cls = lambda source, metadata: lambda *args: launched(source, args[_BEFORE_ARGUMENTS:])

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


_BEFORE_ARGUMENTS = 9
"""Grid, stream, function, metadata twice and hooks come before a kernel's own arguments."""


class _Utilities:
    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return object(), object(), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "warpSize": 32, "max_num_regs": 65536, "multiprocessor_count": 132}
