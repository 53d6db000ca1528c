"""One network in training, an epoch at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import repeat
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from training.data import Batch
from training.errors import UsageError
from training.losses import Loss
from training.networks import Network
from training.processes import ALONE, Processes
from training.schedule import Schedule

MOMENTUM = 0.9


class Optimization(NamedTuple):
    """SGD with momentum 0.9."""

    learning_rate: float
    weight_decay: float = 5e-4
    nesterov: bool = True
    clip: float | None = None
    """The largest norm of all gradients together."""
    amp: str = "off"
    """What networks run in: "off" is float32, "bf16" and "fp16" are autocast's, the latter with a scaled loss."""


AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A network and its loss with their optimizer and schedule.

    Of several processes each trains on its share of every batch. A loss must not have parameters of its own then:
    nothing would average their gradients.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimization: Optimization,
        schedule: Schedule,
        processes: Processes = ALONE,
    ) -> None:
        self.network = network
        self.parallel = processes.parallel(network)
        self.processes = processes
        self.loss = loss
        self.clip = optimization.clip
        self.parameters = [*network.parameters(), *loss.module.parameters()]
        self.optimizer = SGD(
            self.parameters,
            lr=optimization.learning_rate,
            momentum=MOMENTUM,
            weight_decay=optimization.weight_decay,
            nesterov=optimization.nesterov,
        )
        self.schedule = LambdaLR(self.optimizer, schedule.factor)
        device = next(network.parameters()).device.type
        self.autocast = torch.autocast(device, AUTOCAST_DTYPES.get(optimization.amp), optimization.amp != "off")
        self.scaler = GradScaler(device, enabled=optimization.amp == "fp16")

    def train_epoch(
        self, batches: Iterable[Batch], epoch: int, weights: Iterable[float] | None = None
    ) -> dict[str, float]:
        """Trains on every batch. Returns the means of the loss's terms over all images, and "seconds_per_step".

        Args:
            batches: this process's share of each.
            epoch: counted from 1.
            weights: as `Processes.weights`; None is 1 for every batch.
        """
        self.network.train()
        self.loss.module.train()
        start = perf_counter()
        sums: dict[str, Tensor] = {}
        steps = images_seen = 0
        for batch, weight in zip(batches, repeat(1.0) if weights is None else weights, strict=False):
            with self.autocast:
                terms = self.loss(self.parallel, batch, epoch)
            self._step(terms["loss"] if weight == 1 else weight * terms["loss"])
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach() * len(batch.labels)
            steps += 1
            images_seen += len(batch.labels)
        totals = [float(total) for total in sums.values()]  # the epoch's only wait for the GPU
        *totals, count = self.processes.summed([*totals, images_seen])
        means = {name: total / count for name, total in zip(sums, totals, strict=True)}
        self.processes.take_buffers_of_first(self.network)
        seconds = perf_counter() - start
        if not all(math.isfinite(mean) for mean in means.values()):
            raise UsageError(
                f"the training loss is no longer finite ({means}): lower --lr or --icd-weight, or set --clip"
            )
        return {**means, "seconds_per_step": seconds / steps}

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {
            "network": self.network.state_dict(),
            "loss": self.loss.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.loss.module.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state.get("scaler", {}))
