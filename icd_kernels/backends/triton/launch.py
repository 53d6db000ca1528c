"""The one place where kernels are launched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton.operators import interprets

_TUNED: dict[Any, tuple[int, int]] = {}


def launch(
    kernel: Any, programs: int, device: torch.device, *args: Any, registers: int | None = None, **constants: Any
) -> None:
    """Launches `kernel` with that many programs on the current stream of `device`.

    `registers`: the most per thread, so that enough programs fit on a multiprocessor; as many as it likes if None.
    """
    if not interprets():
        constants = {name: grouped(value) for name, value in constants.items()}
    with _on(device):
        warps, stages = configs.WARPS, configs.STAGES
        if configs.autotunes() and device.type == "cuda":
            warps, stages = _tuned(kernel, programs, args, constants, registers)
        _run(kernel, programs, args, constants, warps, stages, registers)


@lru_cache(maxsize=4096)
def grouped(constants: Any) -> Any:
    """Constants as kernels take them; a group keeps its object, by which launches remember it."""
    return _group(constants)


def _wrapped(constants: Any) -> Any:
    """A group of constants with every field a `tl.constexpr`: Triton 3.6 hands no plain field on to a helper."""
    if isinstance(constants, tuple) and hasattr(constants, "_fields"):
        constants = _group(constants)
    return tl.constexpr(constants)


def _group(constants: Any) -> Any:
    is_group = isinstance(constants, tuple) and hasattr(constants, "_fields")
    return type(constants)(*map(_wrapped, constants)) if is_group else constants


def compile_options(warps: int, stages: int, registers: int | None) -> dict[str, Any]:
    """Triton's options of a launch; the limit of registers is one of NVIDIA's."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if registers is not None and torch.version.hip is None and not interprets():
        options["maxnreg"] = registers
    return options


def _run(
    kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, warps: int, stages: int, registers: int | None
) -> None:
    kernel[(programs,)](*args, **constants, **compile_options(warps, stages, registers))


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _tuned(kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, registers: int | None) -> tuple[int, int]:
    """The fastest of the choices, timed once for each kernel, number of programs and constants. Not while capturing."""
    key = (kernel, programs, tuple(constants.values()))
    if key not in _TUNED:
        if torch.cuda.is_current_stream_capturing():
            return configs.AUTOTUNE_CHOICES[0]
        timings = [
            _milliseconds(_run, kernel, programs, args, constants, *choice, registers)
            for choice in configs.AUTOTUNE_CHOICES
        ]
        _TUNED[key] = configs.AUTOTUNE_CHOICES[timings.index(min(timings))]
    return _TUNED[key]


def _milliseconds(function: Callable[..., None], *args: Any) -> float:
    """Of a call by the device's clock, infinite where the choice does not fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(lambda: function(*args), return_mode="median"))
    except OutOfResources:
        return float("inf")
