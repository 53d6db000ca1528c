"""The learning rate over a training, as a factor that depends on the step alone."""

from __future__ import annotations

import math
from typing import NamedTuple

SCHEDULES = ("cosine", "steps")
STEP_FACTOR = 0.1
"""What "steps" multiplies the rate by at each milestone."""


class Schedule(NamedTuple):
    """How the rate goes from its start: "cosine" down to 0, or "steps" at milestones."""

    epochs: int
    steps_per_epoch: int
    kind: str = "cosine"
    milestones: tuple[int, ...] = ()
    """Epochs that are finished when the rate falls, for "steps"."""
    warmup_epochs: int = 0
    """Over these the rate also grows from 0 to itself, in equal parts a step."""

    def factor(self, step: int) -> float:
        """Of the rate at a step, counted from 0."""
        epoch = step / self.steps_per_epoch
        if self.kind == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * min(epoch / self.epochs, 1.0)))
        else:
            factor = STEP_FACTOR ** sum(epoch >= milestone for milestone in self.milestones)
        if epoch < self.warmup_epochs:
            factor *= (step + 1) / (self.warmup_epochs * self.steps_per_epoch)
        return factor
