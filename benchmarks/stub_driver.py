"""A driver for Triton that compiles and launches nothing: the host's part of a call, without a GPU.

CPU tensors stand in for the GPU's. What the kernels would write stays as the allocator left it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from icd_kernels.backends.triton import LIBRARY, TRITON, native
from icd_kernels.backends.triton.operators import implement
from icd_kernels.options import Options

Launched = Callable[[Any, tuple[Any, ...]], None]


def install(launched: Launched | None = None, *, capability: int = 90) -> None:
    """For the rest of this process; `launched` is called with the source of every launched kernel and its arguments,
    for which Triton launches every kernel. Without it the compiled extension does, where it is there.

    `capability`: of the NVIDIA GPU that is compiled for; 90 is an H100's.
    """
    driver.set_active(_Driver(launched or (lambda source, args: None), capability))
    native.driver_entry = (lambda: None) if launched else _nothing
    assert LIBRARY is not None, TRITON.missing
    implement(LIBRARY, "CPU")


def _nothing() -> int | None:
    """The address of a function that answers 0 and does nothing, whatever it is given."""
    return ctypes.cast(ctypes.CDLL("libm.so.6").feclearexcept, ctypes.c_void_p).value


def loss(tensors: Sequence[Tensor], options: Options) -> Tensor:
    """`icd_loss` by the Triton backend on CPU tensors: student's features, weight, bias, then the teacher's."""
    return _ANYWHERE.icd_loss(*tensors, options)


_ANYWHERE = replace(TRITON, device_types=None)


class _Driver:
    """What Triton's dispatch asks of a driver."""

    def __init__(self, launched: Launched, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)
        self.utils = _Utilities()
        self.launcher_cls = lambda source, metadata: lambda *args: launched(source, args[_BEFORE_ARGUMENTS:])

    def get_current_target(self) -> GPUTarget:
        return self._target

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
        return object(), 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "warpSize": 32, "max_num_regs": 65536, "multiprocessor_count": 132}
