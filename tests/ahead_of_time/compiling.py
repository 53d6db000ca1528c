"""Kernels compiled ahead of time, without a GPU, for the launches that real calls would make.

The launchers run on meta tensors with the launch itself recorded; each recorded launch is compiled for a target exactly
as Triton would specialise it. binary.py reads what came out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from icd_kernels.backends.triton import configs, launch, plan

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
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches are collected instead of made."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, args: tuple[Any, ...], constants: Any, options: dict[str, Any]) -> None:
        launches.append(Launch(kernel, programs, args, dict(constants), options))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch, "_run", record)
        yield launches


def launches_of(call: Callable[[], Any], target: str = "sm_90") -> list[Launch]:
    """The launches that `call` would make on a machine with `target`."""
    with recorded_launches() as launches, pytest.MonkeyPatch.context() as monkeypatch:
        if TARGETS[target].backend == "hip":
            monkeypatch.setattr(torch.version, "hip", "6.0")
        else:
            generation = divmod(int(TARGETS[target].arch), 10)
            monkeypatch.setattr(configs, "capability", lambda device: generation)
        plan.forget()
        call()
    plan.forget()
    return launches


def compiled(recorded: Launch, target: GPUTarget) -> Any:
    """The recorded launch's kernel, compiled for `target`."""
    source, options = source_of(recorded, target)
    return triton.compile(source, target=target, options=options)


def timed(recorded: Launch, target: GPUTarget) -> tuple[Any, float]:
    """The same, with the seconds of processor time that it took, whatever lies in Triton's cache."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(triton.knobs.compilation, "always_compile", True)
        start = time.process_time()
        kernel = compiled(recorded, target)
        return kernel, time.process_time() - start


def source_of(recorded: Launch, target: GPUTarget) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for the launch, and with which options: two launches with equal ones share a kernel."""
    backend = make_backend(target)
    kernel = recorded.kernel
    arguments = {**recorded.constants, **recorded.options, "debug": False}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, rest = binder(*recorded.args, **arguments)
    packed, signature, constants, attributes = kernel._pack_args(backend, arguments, bound, specialization, rest)
    return ASTSource(kernel, signature, constants, attributes), packed.__dict__


def identity_of(recorded: Launch, target: GPUTarget) -> tuple[str, str]:
    """Equal for launches that share a compiled kernel."""
    source, options = source_of(recorded, target)
    return source.hash(), str(sorted(options.items(), key=str))


def amd_spills(kernel: Any) -> int:
    """Registers that a kernel for an AMD GPU spills, by its assembly's own notes."""
    return sum(int(count) for count in re.findall(r"[vs]gpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"]))
