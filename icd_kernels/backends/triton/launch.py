"""The one place where kernels are launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from icd_kernels.backends.triton import configs, native
from icd_kernels.backends.triton.operators import interprets

_TUNED: dict[Any, tuple[int, int]] = {}
_ON_THE_CURRENT_ONE: AbstractContextManager[Any] = nullcontext()


class Launch:
    """A kernel with its number of programs and its constants: what stays of a launch from one call to the next.

    At every launch Triton looks at some hundred arguments to find what it compiled for them, and asks the driver about
    every pointer. Here sizes, strides and dtypes are the same at every call: only the 16-byte alignment of callers'
    tensors varies. The compiled kernel is cached by it, and its arguments as places within the tensors of a call.
    """

    def __init__(
        self, kernel: Any, programs: int, *, registers: int | None = None, is_chained: bool = False, **constants: Any
    ) -> None:
        """`registers`: the most per thread, so that enough programs fit on a multiprocessor; None: as many as it likes.

        `is_chained`: it may begin while the launch before it ends, for which the kernel waits itself.

        `constants`: those of the kernel, in its order, which must be its last arguments.
        """
        self.kernel = kernel
        self.programs = programs
        self.registers = registers
        self.is_chained = is_chained
        self.constants = constants if interprets() else {name: grouped(value) for name, value in constants.items()}
        self._runners: dict[Any, _Runner] = {}

    def __call__(
        self,
        device: torch.device,
        arguments: Callable[..., tuple[Any, ...]],
        given: tuple[Tensor | None, ...],
        allocated: tuple[Tensor, ...],
        stream: int | None = None,
        last: tuple[Any, ...] = (),
    ) -> None:
        """Launches on the current stream of `device`, which is `stream` where the caller knows it.

        `arguments(*given)`: the kernel's, but for the `last` ones. A tensor in them is one of `given`, which callers
        allocated and which may begin anywhere, or lies within one of `allocated`, which begin at multiples of 16 bytes.
        """
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*given, *allocated)]
        key = (device.index, *[address % 16 for address in addresses[: len(given)]])
        runner = self._runners.get(key)
        with _ON_THE_CURRENT_ONE if _is_current(device) else torch.cuda.device(device):
            if runner is None:
                self._first(key, device, arguments, given, allocated, last)
            else:
                runner(addresses, last, stream)

    def _first(
        self,
        key: Any,
        device: torch.device,
        arguments: Callable[..., tuple[Any, ...]],
        given: tuple[Tensor | None, ...],
        allocated: tuple[Tensor, ...],
        last: tuple[Any, ...],
    ) -> None:
        """Lets Triton launch, and remembers what it compiled.

        Not on AMD's GPUs, where that depends on how much memory lies behind a pointer, too.
        """
        warps, stages = configs.WARPS, configs.STAGES
        # Two of them may be one tensor this time: each gets an object of its own, to be found by.
        given = tuple(None if tensor is None else tensor.detach() for tensor in given)
        args = arguments(*given)
        every = (*args, *last)
        if configs.autotunes() and device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                self._by_triton(every, warps, stages)
                return
            warps, stages = self._tuned(every)
        compiled = self._by_triton(every, warps, stages)
        if compiled is not None and torch.version.hip is None:
            self._runners[key] = _Runner(
                compiled, self.programs, _places(args, given, allocated), len(last), tuple(self.constants.values())
            )

    def _tuned(self, args: tuple[Any, ...]) -> tuple[int, int]:
        """The fastest of the choices, timed once for each kernel, number of programs and constants."""
        key = (self.kernel, self.programs, tuple(self.constants.values()))
        if key not in _TUNED:
            timings = [_milliseconds(self._by_triton, args, *choice) for choice in configs.AUTOTUNE_CHOICES]
            _TUNED[key] = configs.AUTOTUNE_CHOICES[timings.index(min(timings))]
        return _TUNED[key]

    def _by_triton(self, args: tuple[Any, ...], warps: int, stages: int) -> Any:
        """Launches by Triton's own dispatch; returns what it compiled, None where it interprets."""
        options = compile_options(warps, stages, self.registers, self.is_chained)
        return _run(self.kernel, self.programs, args, self.constants, options)


class _Runner:
    """A compiled kernel with the places of its arguments."""

    def __init__(
        self, compiled: Any, programs: int, places: Sequence[Any], numbers: int, constants: tuple[Any, ...]
    ) -> None:
        self._native = native.native_launch(compiled, programs, places, numbers)
        self._run = compiled[(programs, 1, 1)]
        self._places = places
        self._constants = constants

    def __call__(self, addresses: list[int], last: tuple[Any, ...], stream: int | None) -> None:
        if self._native is not None and not native.is_watched():
            if stream is None:
                stream = driver.active.get_current_stream(driver.active.get_current_device())
            if self._native(addresses, last, stream) == 0:
                return
        # The same by Triton's launcher, which says what is wrong where the driver refused.
        args = [
            tuple([value if base is None else addresses[base] + value for base, value in place])
            if type(place) is list
            else addresses[place[0]] + place[1]
            if place[0] is not None
            else place[1]
            for place in self._places
        ]
        self._run(*args, *last, *self._constants, stream=stream)


def _places(args: tuple[Any, ...], given: tuple[Any, ...], allocated: tuple[Tensor, ...]) -> list[Any]:
    """Every argument as (number of its tensor, bytes from its beginning), or (None, the argument); groups as lists."""

    def place(arg: Any) -> tuple[int | None, Any]:
        if not isinstance(arg, Tensor):
            return None, arg
        for number, tensor in enumerate(given):
            if tensor is arg:
                return number, 0
        return _within(arg, allocated, len(given))

    return [[place(leaf) for leaf in arg] if isinstance(arg, tuple) else place(arg) for arg in args]


def _within(arg: Tensor, allocated: tuple[Tensor, ...], first: int) -> tuple[int | None, int]:
    """Which of the allocated tensors, numbered from `first`, `arg` lies in, and how far from its beginning."""
    if arg.numel() == 0:
        return None, 0
    storage = arg.untyped_storage().data_ptr()
    for number, tensor in enumerate(allocated, first):
        if tensor.numel() and tensor.untyped_storage().data_ptr() == storage:
            return number, arg.data_ptr() - tensor.data_ptr()
    raise AssertionError(f"an argument of shape {tuple(arg.shape)} lies in none of the tensors of its launch")


def grouped(constants: Any) -> Any:
    """Constants as kernels take them: every field of a group, however deep, a `tl.constexpr`."""
    is_group = isinstance(constants, tuple) and hasattr(constants, "_fields")
    return type(constants)(*map(_wrapped, constants)) if is_group else constants


def _wrapped(field: Any) -> Any:
    """A field of a group; Triton 3.6 hands no plain one on to a helper."""
    return tl.constexpr(grouped(field))


def compile_options(warps: int, stages: int, registers: int | None, is_chained: bool = False) -> dict[str, Any]:
    """Triton's options of a launch; the limit of registers and chains of launches are NVIDIA's."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    if torch.version.hip is None and not interprets():
        if registers is not None:
            options["maxnreg"] = registers
        if is_chained:
            options["launch_pdl"] = True
    return options


def _run(kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, options: dict[str, Any]) -> Any:
    return kernel[(programs,)](*args, **constants, **options)


def _is_current(device: torch.device) -> bool:
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def _milliseconds(function: Callable[..., None], *args: Any) -> float:
    """Of a call by the device's clock, infinite where the choice does not fit the device."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return float(do_bench(lambda: function(*args), return_mode="median"))
    except OutOfResources:
        return float("inf")
