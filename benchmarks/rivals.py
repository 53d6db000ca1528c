"""Who is timed: plain PyTorch in three ways, the released formulation op by op, and the package's compiled backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import released_eager
from benchmarks.cases import Case
from benchmarks.workloads import Inputs
from icd_kernels import icd_loss
from icd_kernels.backends import BACKENDS
from icd_kernels.options import DEFAULT_SCALES

Step = Callable[[], tuple[Tensor, ...]]


class Rival(NamedTuple):
    """One way of computing the loss."""

    name: str
    backend: str = "reference"
    compile_mode: str = ""
    """The `mode` of the `torch.compile` put over the backend; empty for none."""
    is_released: bool = False
    """Whether it is the released formulation, restated op by op, in place of a backend of `icd_loss`."""

    @property
    def is_ours(self) -> bool:
        return self.backend != "reference"

    def loss(self, **options: Any) -> Callable[..., Tensor]:
        """The loss as a function of the tensors of :class:`benchmarks.workloads.Inputs`."""
        if self.is_released:
            return released_eager.icd_loss
        function = partial(icd_loss, backend=self.backend, **options)
        if self.compile_mode:
            return torch.compile(
                lambda *tensors: function(*tensors), fullgraph=True, dynamic=False, mode=self.compile_mode
            )
        return function

    def forward_backward(self, inputs: Inputs, **options: Any) -> Step:
        """One training step's work for this loss: its value and the gradients by the student's leaves."""
        return step_of(self.loss(**options), inputs)

    def why_not(self, case: Case, device: str) -> str:
        """The reason why it cannot take the case; empty where it can."""
        backend = next(backend for backend in BACKENDS if backend.name == self.backend)
        if backend.missing is not None:
            return f"backend {self.backend!r} is missing: {backend.missing}"
        if backend.device_types is not None and device not in backend.device_types:
            return f"backend {self.backend!r} does not run on {device}"
        if self.is_released and (case.options["gram"] != "spatial" or case.scales != DEFAULT_SCALES):
            return "the released code has only the spatial form with scales (1, 2, 4)"
        return ""


def step_of(loss: Callable[..., Tensor], inputs: Inputs) -> Step:
    """Forward and backward of a loss."""
    leaves = inputs.leaves()

    def step() -> tuple[Tensor, ...]:
        value = loss(*inputs)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return step


EAGER = Rival("eager")
RELEASED = Rival("released", is_released=True)
COMPILED = Rival("compiled", compile_mode="default")
AUTOTUNED = Rival("compiled max-autotune", compile_mode="max-autotune-no-cudagraphs")
CPP = Rival("cpp", "cpp")

RIVALS = {
    rival.name: rival
    for rival in (EAGER, RELEASED, COMPILED, AUTOTUNED, CPP, Rival("triton", "triton"), Rival("cuda", "cuda"))
}
CPU_RIVALS = (EAGER, COMPILED, CPP)
