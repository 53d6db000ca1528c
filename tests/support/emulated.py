"""The CUDA backend's own source on the CPU: its launcher and its kernels, with every CUDA thread played by a fiber.

`tests/native/cuda_on_host.h` says what that proves and what it does not. Operators live in a namespace of their own, so
that the CPU kernels of the package stay what they are.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import load

from icd_kernels import backends
from icd_kernels.backends.base import Backend, operator_backend
from icd_kernels.operators import SCHEMAS, register_fakes

ROOT = Path(__file__).resolve().parents[2]
NAME = "icd_kernels_emulated"
SOURCES = (
    *(ROOT / "csrc" / "cuda" / name for name in ("stages.cpp",)),
    *(ROOT / "tests" / "native" / name for name in ("cuda_on_host.cpp", "emulated_kernels.cpp", "emulated_device.cpp")),
)
FLAGS = ["-std=c++20", "-O1", "-Wall", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]


def add_emulated_backend() -> str:
    """Puts it among the package's backends, where a name finds it; "auto" does not. Returns the name."""
    backend = emulated_backend()
    if backend not in backends.BACKENDS:
        backends.BACKENDS = (*backends.BACKENDS, backend)
    return backend.name


def add_emulated_backend_or_skip() -> str:
    """The same for tests: without the tools to build it, they are skipped."""
    for tool, wanted in (("ninja", "ninja"), ("c++", "a C++ compiler")):
        if shutil.which(tool) is None:
            pytest.skip(f"the emulated CUDA backend needs {wanted} on the PATH")
    return add_emulated_backend()


def run_as(schedule: int, processors: int) -> None:
    set_schedule(schedule)
    set_processors(processors)


SCHEDULES = {"in order": -2, "reversed": -1, "random": 1}
"""Orders in which the threads run, by the number that `set_schedule` takes."""


@cache
def emulated_backend() -> Backend:
    """Builds (once; afterwards only what changed) and loads it: the backend "cuda" for CPU tensors."""
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    library = torch.library.Library(NAME, "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _KEPT.append(library)
    load(
        NAME,
        [str(source) for source in SOURCES],
        extra_cflags=FLAGS,
        build_directory=str(folder),
        is_python_module=False,
    )
    register_fakes(NAME)
    return operator_backend("emulated", ("cpu",), None, NAME, only_by_name=("cpu",))


_KEPT: list[torch.library.Library] = []
"""A library's operators live as long as it does."""


def set_schedule(schedule: int) -> None:
    """-2: threads in order, -1: reversed, otherwise at random from this seed."""
    getattr(torch.ops, NAME).set_schedule(schedule)


def set_processors(count: int) -> None:
    """How many multiprocessors the launcher believes in: decides splits and blocks."""
    getattr(torch.ops, NAME).set_processors(count)


def launches() -> tuple[int, int]:
    """Kernels launched and memory cleared since the last call."""
    kernels, clears = getattr(torch.ops, NAME).launches()
    return kernels, clears
