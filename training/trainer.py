"""One network in training, an epoch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from training.errors import UsageError
from training.losses import Terms
from training.networks import Network

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4

Objective = Callable[[Network, Tensor, Tensor], Terms]


class Trainer:
    """A network with its optimizer (SGD, momentum 0.9, weight decay 5e-4) and cosine schedule down to 0."""

    def __init__(self, network: Network, learning_rate: float, steps: int) -> None:
        self.network = network
        self.optimizer = SGD(
            network.parameters(), lr=learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
        )
        self.schedule = CosineAnnealingLR(self.optimizer, T_max=steps)

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], objective: Objective) -> dict[str, float]:
        """Trains on every batch. Returns the means of the objective's terms, and "seconds_per_step"."""
        self.network.train()
        start = perf_counter()
        sums: dict[str, Tensor] = {}
        steps = images_seen = 0
        for images, labels in batches:
            terms = objective(self.network, images, labels)
            self.optimizer.zero_grad(set_to_none=True)
            terms["loss"].backward()
            self.optimizer.step()
            self.schedule.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() * len(labels)
            steps += 1
            images_seen += len(labels)
        means = {name: float(total) / images_seen for name, total in sums.items()}  # the epoch's only wait for the GPU
        seconds = perf_counter() - start
        if not all(math.isfinite(mean) for mean in means.values()):
            raise UsageError(f"the training loss is no longer finite ({means}): lower --lr or --icd-weight")
        return {**means, "seconds_per_step": seconds / steps}

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
