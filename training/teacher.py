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

from training import checkpoint, pretrained
from training.data import DataSet
from training.losses import CrossEntropy
from training.networks import LibraryModel, LogitsAlone, Network
from training.processes import ALONE, Processes
from training.schedule import Schedule
from training.teacher_network import make_teacher
from training.trainer import Optimization, Trainer

BATCH_SIZE = 64


class Teacher:
    """A teacher and its file, which holds it after every epoch: an interrupted training goes on from there."""

    SETTINGS = (
        *("data", "data_content", "teacher", "teacher_epochs", "teacher_lr", "teacher_seed", "pretrained"),
        *("teacher_mean", "teacher_std", "device", "threads", "processes"),
    )
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
        self.network = make_teacher(images, settings).to(device)
        count = len(images.train_labels)
        steps = images.steps_per_epoch(count, BATCH_SIZE)
        self.weights = processes.weights(count, BATCH_SIZE, steps)
        optimization = Optimization(settings["teacher_lr"])
        self.trainer = Trainer(
            self.network, CrossEntropy(), optimization, Schedule(max(1, self.epochs), steps), processes
        )
        self.path = (
            folder / f"teacher-{re.sub(r'[^A-Za-z0-9]+', '-', settings['data'])}-{_key(self.settings, self.network)}.pt"
        )
        self.source = f"{self.path}: the trained teacher, for later runs"
        if self.epochs == 0:
            self.source = f"--teacher {settings['teacher']}: its published weights, as they are"
        self.epochs_done = 0
        saved = processes.from_first(lambda: checkpoint.load(self.path) if self.path.exists() else None)
        if saved is None and settings["pretrained"]:
            assert isinstance(self.network, LibraryModel | LogitsAlone)  # `resolved` refuses the others
            pretrained.load(self.network, settings["teacher"], images.channels)
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
