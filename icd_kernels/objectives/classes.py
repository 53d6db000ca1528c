"""Which classes of two heads belong together, and which of them an image does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icd_kernels.objectives.values import is_on_host

UNLABELLED = -100
"""A target of an image that has no label, as for `torch.nn.functional.cross_entropy`."""

MASKED = -1e30
"""What stands for a logit of -inf: its probability is exactly 0, and 0 times it is 0 and not NaN."""


class ClassPairs:
    """Pair k is class `student[k]` of the student and `teacher[k]` of the teacher; None is class k."""

    def __init__(self, count: int, student: Sequence[int] | None, teacher: Sequence[int] | None) -> None:
        for name, classes in (("student_classes", student), ("teacher_classes", teacher)):
            if classes is not None and len(classes) != count:
                raise ValueError(
                    f"{name} must have num_classes = {count} classes, one of every pair, got {len(classes)}"
                )
        self.count = count
        self.by_network = {"student": student, "teacher": teacher}
        self._indices: dict[tuple[str, torch.device], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indices": {}}

    def check_width(self, network: str, name: str, width: int) -> None:
        """Raises ValueError where `width` classes, those of `name`, are not what the pairs of `network` need."""
        classes = self.by_network[network]
        if classes is None and width != self.count:
            raise ValueError(f"{name} must have {self.count} classes, got {width}")
        if classes is not None and width <= max(classes):
            raise ValueError(f"{name} must have class {max(classes)} of {network}_classes, got {width} classes")

    def paired(self, network: str, tensor: Tensor, dim: int) -> Tensor:
        """The paired classes of `tensor`, whose dimension `dim` is the classes of `network`."""
        index = self._index(network, tensor.device)
        return tensor if index is None else tensor.index_select(dim, index)

    def pair_of(self, target: Tensor, classes: int) -> Tensor:
        """The pairs of the student's classes `target`, (B,); UNLABELLED for a class that is in none."""
        index = self._index("student", target.device)
        if index is None:
            return target
        table = target.new_full((classes + 1,), UNLABELLED)  # the last one is for images without a label
        table[index] = torch.arange(self.count, device=target.device)
        return table[torch.where(target == UNLABELLED, classes, target)]

    def _index(self, network: str, device: torch.device) -> Tensor | None:
        classes = self.by_network[network]
        if classes is None:
            return None
        if torch.compiler.is_compiling():
            return torch.tensor(classes, device=device)
        found = self._indices.get((network, device))
        if found is None:
            found = self._indices[network, device] = torch.tensor(classes, device=device)
        return found


def masked_classes(student: Tensor, teacher: Tensor) -> Tensor | None:
    """Where either network's logit is -inf, which says "not a class here"; None where it is known that none is."""
    masked = torch.minimum(student.detach(), teacher.detach()) == -math.inf
    return None if is_on_host(masked) and not masked.any().tolist() else masked


def without_masked(logits: Tensor, masked: Tensor | None) -> Tensor:
    """Logits with :data:`MASKED` at masked classes, which then have no probability and no gradient."""
    return logits if masked is None else logits.masked_fill(masked, MASKED)
