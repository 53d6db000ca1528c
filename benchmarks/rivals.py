"""Who is timed: eager PyTorch, `torch.compile` of the same code, and the package's compiled backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import Inputs
from icd_kernels import icd_loss

Step = Callable[[], tuple[Tensor, ...]]


class Rival(NamedTuple):
    """One way of computing the loss."""

    name: str
    backend: str
    is_compiled: bool = False
    """Whether `torch.compile` is put over the backend."""

    def loss(self, **options: Any) -> Callable[..., Tensor]:
        """The loss as a function of the tensors of :class:`benchmarks.workloads.Inputs`."""
        function = partial(icd_loss, backend=self.backend, **options)
        if self.is_compiled:
            return torch.compile(lambda *tensors: function(*tensors), fullgraph=True, dynamic=False)
        return function

    def forward_backward(self, inputs: Inputs, **options: Any) -> Step:
        """One training step's work for this loss: its value and the gradients by the student's leaves."""
        loss, leaves = self.loss(**options), inputs.leaves()

        def step() -> tuple[Tensor, ...]:
            value = loss(*inputs)
            return value.detach(), *torch.autograd.grad(value, leaves)

        return step


EAGER = Rival("eager", "reference")
COMPILED = Rival("compiled", "reference", is_compiled=True)
CPP = Rival("cpp", "cpp")

CPU_RIVALS = (EAGER, COMPILED, CPP)
