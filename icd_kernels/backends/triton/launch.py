"""The one place where kernels are launched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton.operators import interprets

_TUNED: dict[Any, tuple[int, int]] = {}


class Launch:
    """A kernel with its number of programs and its constants: what stays of a launch from one call to the next.

    Triton looks at each of some hundred arguments, at every launch, to find what it compiled for them. Here sizes and
    strides are the same at every call, as is the dtype of every tensor, so all that can change is where tensors that
    were not allocated for this launch begin: what was compiled is remembered by that.
    """

    def __init__(self, kernel: Any, programs: int, *, registers: int | None = None, **constants: Any) -> None:
        """`registers`: the most per thread, so that enough programs fit on a multiprocessor; None: as many as it likes.

        `constants`: those of the kernel, in its order, which must be its last arguments.
        """
        self.kernel = kernel
        self.programs = programs
        self.registers = registers
        self.constants = constants if interprets() else {name: grouped(value) for name, value in constants.items()}
        self._runners: dict[Any, Callable[..., None]] = {}

    def __call__(self, device: torch.device, *args: Any, given: tuple[Tensor | None, ...] = ()) -> None:
        """Launches on the current stream of `device`; `given`: the tensors among `args` that callers allocated."""
        key = (device.index, configs.autotunes(), *[tensor is None or tensor.data_ptr() % 16 == 0 for tensor in given])
        with _on(device):
            runner = self._runners.get(key)
            if runner is None:
                self._first(key, device, args)
            else:
                runner(*args, *self.constants.values())

    def _first(self, key: Any, device: torch.device, args: tuple[Any, ...]) -> None:
        """Lets Triton launch, and remembers what it compiled.

        Not on AMD's GPUs, where that depends on how much memory lies behind a pointer, too.
        """
        warps, stages = configs.WARPS, configs.STAGES
        if configs.autotunes() and device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                _run(self.kernel, self.programs, args, self.constants, warps, stages, self.registers)
                return
            warps, stages = self._tuned(args)
        compiled = _run(self.kernel, self.programs, args, self.constants, warps, stages, self.registers)
        if compiled is not None and torch.version.hip is None:
            self._runners[key] = compiled[(self.programs, 1, 1)]

    def _tuned(self, args: tuple[Any, ...]) -> tuple[int, int]:
        """The fastest of the choices, timed once for each kernel, number of programs and constants."""
        key = (self.kernel, self.programs, tuple(self.constants.values()))
        if key not in _TUNED:
            timings = [
                _milliseconds(_run, self.kernel, self.programs, args, self.constants, *choice, self.registers)
                for choice in configs.AUTOTUNE_CHOICES
            ]
            _TUNED[key] = configs.AUTOTUNE_CHOICES[timings.index(min(timings))]
        return _TUNED[key]


def grouped(constants: Any) -> Any:
    """Constants as kernels take them: every field of a group, however deep, a `tl.constexpr`."""
    is_group = isinstance(constants, tuple) and hasattr(constants, "_fields")
    return type(constants)(*map(_wrapped, constants)) if is_group else constants


def _wrapped(field: Any) -> Any:
    """A field of a group; Triton 3.6 hands no plain one on to a helper."""
    return tl.constexpr(grouped(field))


def compile_options(warps: int, stages: int, registers: int | None) -> dict[str, Any]:
    """Triton's options of a launch; the limit of registers is one of NVIDIA's."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if registers is not None and torch.version.hip is None and not interprets():
        options["maxnreg"] = registers
    return options


def _run(
    kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, warps: int, stages: int, registers: int | None
) -> Any:
    """Launches by Triton's own dispatch; returns what it compiled, None where it interprets."""
    return kernel[(programs,)](*args, **constants, **compile_options(warps, stages, registers))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    is_current = device.type != "cuda" or device.index == torch.cuda.current_device()
    return nullcontext() if is_current else torch.cuda.device(device)


def _milliseconds(function: Callable[..., None], *args: Any) -> float:
    """Of a call by the device's clock, infinite where the choice does not fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(lambda: function(*args), return_mode="median"))
    except OutOfResources:
        return float("inf")
