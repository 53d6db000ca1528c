"""A teacher's outputs of all training images, computed once and kept: what it then costs is a lookup."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icd_kernels import NetworkOutput, local_logits
from training import checkpoint
from training.data import Batch, DataSet
from training.networks import Network

BATCH_SIZE = 64
READS_MAPS = ("sp", "crd")
"""Methods that read the teacher's maps, which are not kept: they are a hundred times as large as its logits."""


class CachedTeacher:
    """Logits (n, K) and local logits (n, K, N) of the images of a data set, in float16."""

    def __init__(self, logits: Tensor, regions: Tensor) -> None:
        self.logits = logits
        self.regions = regions

    @classmethod
    def load_or_run(cls, teacher: Network, images: DataSet, settings: dict[str, Any], trained: Path) -> CachedTeacher:
        """From the file beside that of the trained network, which is written where there is none."""
        described = {name: settings[name] for name in ("scales", "pyramid")}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:8]
        path = trained.with_name(f"{trained.stem}-outputs-{key}.pt")
        device = images.train_labels.device
        if not path.exists():
            checkpoint.save(path, _outputs(teacher, images, settings))
        saved = checkpoint.load(path, device)
        return cls(saved["logits"], saved["regions"])

    def at(self, rows: Tensor) -> CachedTeacher:
        """Of these images, (m,), which are then counted from 0."""
        return CachedTeacher(self.logits[rows], self.regions[rows])

    def __call__(self, batch: Batch) -> NetworkOutput:
        """What it said of the batch's images."""
        return NetworkOutput(self.logits[batch.indices], regions=self.regions[batch.indices])


@torch.no_grad()
def _outputs(teacher: Network, images: DataSet, settings: dict[str, Any]) -> dict[str, Tensor]:
    logits, regions = [], []
    for batch in images.ordered_train_batches(BATCH_SIZE):
        output = teacher(batch.images)
        assert output.features is not None
        assert output.head is not None
        local = local_logits(
            output.features,
            output.head,
            scales=settings["scales"],
            pyramid=settings["pyramid"],
            backend=settings["backend"],
        )
        logits.append(output.logits.half())
        regions.append(local.half())
    return {"logits": torch.cat(logits), "regions": torch.cat(regions)}
