"""Kernels compiled ahead of time, without a GPU, for the launches that real calls would make.

The launchers run on meta tensors with the launch itself recorded; each recorded launch is compiled for a target exactly
as Triton would specialise it. Registers, shared memory and spills are read from the cubins by Triton's own cuobjdump.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from icd_kernels.backends.triton import launch

SHARED_LIMITS = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes of shared memory one program can have."""

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int
    stages: int
    registers: int | None

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches are collected instead of made."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, *options: Any) -> None:
        launches.append(Launch(kernel, programs, args, dict(constants), *options))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "_run", record)
        yield launches


def launches_of(call: Callable[[], Any], target: str = "sm_90") -> list[Launch]:
    """The launches that `call` would make on a machine with `target`."""
    with recorded_launches() as launches, pytest.MonkeyPatch.context() as monkeypatch:
        if TARGETS[target].backend == "hip":
            monkeypatch.setattr(torch.version, "hip", "6.0")
        call()
    return launches


def compiled(recorded: Launch, target: GPUTarget) -> Any:
    """The recorded launch's kernel, compiled for `target`."""
    backend = make_backend(target)
    kernel = recorded.kernel
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(torch.version, "hip", "6.0" if target.backend == "hip" else None)
        options = launch.compile_options(recorded.warps, recorded.stages, recorded.registers)
    options["debug"] = False
    arguments = {**recorded.constants, **options}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(*recorded.args, **arguments)
    packed, signature, constants, attributes = kernel._pack_args(backend, arguments, bound, specialization, rest)
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=packed.__dict__)


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes of a multiprocessor."""

    registers: int
    shared: int
    stack: int
    """Bytes of local memory per thread: an array that did not fit the registers."""
    spills: int
    """Instructions that store registers to local memory."""


def usage(kernel: Any) -> Usage:
    """Read from the binary by cuobjdump (NVIDIA), or from the assembly's own notes (AMD)."""
    if "cubin" not in kernel.asm:
        text = kernel.asm["amdgcn"]
        spills = sum(int(count) for count in re.findall(r"[vs]gpr_spill_count:\s*(\d+)", text))
        return Usage(_number(r"\.vgpr_count:\s*(\d+)", text), kernel.metadata.shared, 0, spills)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        text = _tool("cuobjdump", "--dump-resource-usage", str(path))
        assembly = _tool("nvdisasm", "-c", str(path))
    stack = max(_number(r"STACK:(\d+)", text), _number(r"LOCAL:(\d+)", text))
    return Usage(_number(r"REG:(\d+)", text), kernel.metadata.shared, stack, len(re.findall(r"\bSTL\b", assembly)))


def _tool(name: str, *args: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in:\n{text[:2000]}"
    return int(found.group(1))
