"""Launches by the compiled extension (csrc/triton/launch.cpp), which spares Python the arguments that stay the same.

Triton's own launcher remains what runs where anything is not as expected: no extension, AMD's GPUs, launches that a
profiler's hooks watch, or a kernel whose parameters are not those counted here.
"""

from __future__ import annotations

import ctypes
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from triton import knobs

launch: Callable[[bytes, list[int], tuple[Any, ...], int], int] | None
try:
    launch = import_module("icd_kernels._C").launch
except (ImportError, AttributeError):  # backends/cpp.py says why; or it is an older one
    launch = None

VALUE, ADDRESS, NUMBER = 0, 1, 2
"""Where a parameter comes from, as csrc/triton/launch.cpp numbers it."""
_HEADER, _PLACE = struct.Struct("<QQIIII"), struct.Struct("<iiq")
_PTX = {"i32": "u32", "i64": "u64", "fp64": "f64"}
"""What the types of a signature are called in PTX; pointers are u64."""
_FIELDS_OF_PLAIN_LAUNCHES = {
    "num_ctas": 1,
    "launch_cooperative_grid": False,
    "launch_pdl": False,
    "global_scratch_size": 0,
    "profile_scratch_size": 0,
}


def native_launch(
    compiled: Any, programs: int, places: Sequence[Any], numbers: int
) -> Callable[[list[int], tuple[Any, ...], int], int] | None:
    """A launch of a compiled kernel: (addresses, numbers, stream) -> the driver's answer, 0 for success.

    `places`: of its arguments (launch.py), after which come that many `numbers` and its constants. None where Triton's
    own launcher has to do it.
    """
    entry, metadata = driver_entry(), compiled.metadata
    if launch is None or entry is None or torch.version.hip is not None:
        return None
    if any(getattr(metadata, name, plain) != plain for name, plain in _FIELDS_OF_PLAIN_LAUNCHES.items()):
        return None
    types = list(compiled.src.signature.values())
    parameters = [*_parameters(types, places), *_numbers(types[len(places) :], numbers)]
    if not _agree([kind for kind, _ in parameters], compiled.asm.get("ptx", "")):
        return None
    header = _HEADER.pack(entry, compiled.function, programs, 32 * metadata.num_warps, metadata.shared, len(parameters))
    plan = header + b"".join(packed for _, packed in parameters)
    return partial(launch, plan)


def _parameters(types: Sequence[Any], places: Sequence[Any]) -> Iterator[tuple[str, bytes]]:
    """Type and packed place of every parameter; what a kernel was compiled for is none."""
    for kind, place in zip(types, places, strict=False):
        if isinstance(kind, tuple):
            yield from _parameters(kind, place)
        elif kind != "constexpr":
            base, value = place
            yield kind, _PLACE.pack(VALUE, 0, value) if base is None else _PLACE.pack(ADDRESS, base, value)


def _numbers(types: Sequence[Any], count: int) -> Iterator[tuple[str, bytes]]:
    for index, kind in enumerate(types[:count]):
        yield kind, _PLACE.pack(NUMBER, index, 0)


def _agree(types: Sequence[str], ptx: str) -> bool:
    """Whether the compiled kernel takes parameters of these types, and pointers to Triton's scratch memory behind."""
    entry = re.search(r"\.entry [^(]*\(([^)]*)\)", ptx)
    if entry is None:
        return False
    taken = re.findall(r"\.param \.(\w+)", entry[1])
    ours = ["u64" if kind.startswith("*") else _PTX.get(kind) for kind in types]
    return taken[: len(ours)] == ours and set(taken[len(ours) :]) <= {"u64"}


def is_watched() -> bool:
    """Whether a profiler asked Triton to be told of launches."""
    runtime = knobs.runtime
    return _has_calls(runtime.launch_enter_hook) or _has_calls(runtime.launch_exit_hook)


def _has_calls(hook: Any) -> bool:
    return bool(getattr(hook, "calls", hook))


def driver_entry() -> int | None:
    """The address of the driver's cuLaunchKernel; None where there is no driver."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return ctypes.cast(library.cuLaunchKernel, ctypes.c_void_p).value
