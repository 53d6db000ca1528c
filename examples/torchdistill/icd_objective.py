"""A training objective of icd_kernels as a mid-level loss of torchdistill, named `ICDObjective` in a YAML file."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor, nn
from torchdistill.losses.registry import register_mid_level_loss

from icd_kernels import NetworkOutput, make_objective
from icd_kernels.heads import Head

IODict = dict[str, dict[str, Tensor]]


class Paths(TypedDict):
    """Where a network's parts are: two module paths that `forward_hook: output` lists, and the head itself."""

    features: str
    logits: str
    head: Head


@register_mid_level_loss
class ICDObjective(nn.Module):
    """`make_objective(method, num_classes=..., ...)` of what torchdistill's forward hooks recorded.

    Args:
        student, teacher: see `Paths`.
        options: those of :func:`icd_kernels.make_objective`, `method` and `num_classes` among them.
    """

    def __init__(self, student: Paths, teacher: Paths, **options: Any) -> None:
        super().__init__()
        self.objective = make_objective(**options)
        self.paths = {"student": student, "teacher": teacher}  # a plain dict: the heads stay the networks' own
        self.epoch = 1
        self.components: dict[str, Tensor] = {}

    def forward(self, student_io: IODict, teacher_io: IODict, targets: Tensor, *_: Any) -> Tensor:
        student, teacher = self._output("student", student_io), self._output("teacher", teacher_io)
        out = self.objective(student, teacher, targets, epoch=self.epoch)
        self.components = out.components
        return out.total

    def _output(self, network: str, io: IODict) -> NetworkOutput:
        paths = self.paths[network]
        logits, features = io[paths["logits"]]["output"], io[paths["features"]]["output"]
        return NetworkOutput(logits, features, paths["head"])
