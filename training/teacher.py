"""The teacher: trained once for each set of settings, and kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, networks
from training.data import DataSet
from training.losses import CrossEntropy
from training.networks import Network
from training.processes import ALONE, Processes
from training.schedule import Schedule
from training.trainer import Optimization, Trainer

BATCH_SIZE = 64


class Teacher:
    """A teacher and its file, which holds it after every epoch: an interrupted training goes on from there."""

    SETTINGS = ("data", "teacher", "teacher_epochs", "teacher_lr", "teacher_seed", "device", "threads", "processes")
    """All of a run's settings that its numbers depend on."""

    def __init__(
        self,
        images: DataSet,
        settings: dict[str, Any],
        folder: Path,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        self.images = images
        self.processes = processes
        self.settings = {name: settings[name] for name in self.SETTINGS}
        self.epochs: int = settings["teacher_epochs"]
        self.seed: int = settings["teacher_seed"]
        self.network = networks.make(
            settings["teacher"], "teacher", images.channels, images.side, images.classes, self.seed
        ).to(device)
        count = len(images.train_labels)
        steps = images.steps_per_epoch(count, BATCH_SIZE)
        self.weights = processes.weights(count, BATCH_SIZE, steps)
        optimization = Optimization(settings["teacher_lr"])
        self.trainer = Trainer(self.network, CrossEntropy(), optimization, Schedule(self.epochs, steps), processes)
        self.path = (
            folder / f"teacher-{re.sub(r'[^A-Za-z0-9]+', '-', settings['data'])}-{_key(self.settings, self.network)}.pt"
        )
        self.source = f"{self.path}: the trained teacher, for later runs"
        self.epochs_done = 0
        saved = processes.from_first(lambda: checkpoint.load(self.path) if self.path.exists() else None)
        if saved is not None:
            self.epochs_done = saved["epochs_done"]
            self.trainer.restore(saved["trainer"])

    def finish(self, progress: Callable[[int], None]) -> Network:
        """Trains what is left; `progress`, in the first process, each finished epoch. Returns the network, frozen."""
        every_row = torch.arange(len(self.images.train_labels), device=self.images.train_labels.device)
        while self.epochs_done < self.epochs:
            share = self.processes.share
            batches = self.images.train_batches(every_row, BATCH_SIZE, self.seed, self.epochs_done, share)
            self.epochs_done += 1
            self.trainer.train_epoch(batches, self.epochs_done, self.weights)
            self.processes.from_first(partial(self._keep, progress))
        return self.network.eval().requires_grad_(False)

    def _keep(self, progress: Callable[[int], None]) -> None:
        saved = {"settings": self.settings, "epochs_done": self.epochs_done, "trainer": self.trainer.state()}
        checkpoint.save(self.path, saved)
        progress(self.epochs_done)


def _key(settings: dict[str, Any], network: Network) -> str:
    """Names everything that the trained numbers depend on."""
    described = json.dumps({**settings, "batch_size": BATCH_SIZE}, sort_keys=True) + repr(network)
    return hashlib.sha256(described.encode()).hexdigest()[:12]
