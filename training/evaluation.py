"""Every student measured the same way on the test images, whatever it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from icd_kernels import ICDLoss, NetworkOutput, gram_kl, local_logits
from training.data import DataSet
from training.losses import kd_loss
from training.networks import Network

BATCH_SIZE = 250
BATCH_SIZE_OF_LARGE = 64
LARGE_SIDE = 64
ICD_IMAGES = 500
"""iCD is measured on so many test images, the first, in whole batches: small networks take less time than it on all."""
MEASURES = ("test_top1", "test_ce", "test_kd", "test_icd")
"""The last is missing where a network gives logits alone."""


class Logits(NamedTuple):
    """What of a network's output is compared."""

    logits: Tensor
    """(n, K)"""
    regions: Tensor | None
    """(n, K, N); None of a network that gives logits alone."""


class Evaluation:
    """Top-1 and the three losses on the test images. The teacher's side is computed once."""

    def __init__(self, data: DataSet, teacher: Network, kd_temperature: float, icd: ICDLoss) -> None:
        self.data = data
        self.kd_temperature = kd_temperature
        self.icd = {**icd.options._asdict(), "backend": icd.backend}  # as `icd_loss` takes them
        self.gram = {name: option for name, option in self.icd.items() if name != "pyramid"}
        self.teacher = [logits for logits, _ in self._outputs(teacher)]

    @torch.no_grad()
    def __call__(self, student: Network) -> dict[str, float]:
        """Means over the test images: "test_top1" in percent, "test_ce", "test_kd"; over the first "test_icd"."""
        sums = dict.fromkeys(MEASURES, 0.0)
        counts = dict.fromkeys(MEASURES, 0)
        for (own, labels), teacher in zip(self._outputs(student), self.teacher, strict=True):
            means = {
                "test_top1": 100 * (own.logits.argmax(1) == labels).float().mean(),
                "test_ce": F.cross_entropy(own.logits, labels),
                "test_kd": kd_loss(own.logits, teacher.logits, self.kd_temperature),
            }
            if own.regions is not None and teacher.regions is not None and counts["test_icd"] < ICD_IMAGES:
                means["test_icd"] = gram_kl(own.regions, teacher.regions, **self.gram)
            for name, mean in means.items():
                sums[name] += mean.item() * len(labels)
                counts[name] += len(labels)
        return {name: sums[name] / count for name, count in counts.items() if count}

    @torch.no_grad()
    def regions(self, network: Network, images: Tensor) -> Tensor | None:
        """Local logits (n, K, N) of some images, of a network that has them."""
        network.eval()
        return self._logits(network(images)).regions

    @torch.no_grad()
    def _outputs(self, network: Network) -> Iterator[tuple[Logits, Tensor]]:
        """Of each test batch: the network's logits, and the labels."""
        network.eval()
        for batch in self.data.test_batches(BATCH_SIZE_OF_LARGE if self.data.side >= LARGE_SIDE else BATCH_SIZE):
            yield self._logits(network(batch.images)), batch.labels

    def _logits(self, output: NetworkOutput) -> Logits:
        if output.features is None:
            return Logits(output.logits, None)
        assert output.head is not None
        options = {name: self.icd[name] for name in ("scales", "pyramid", "backend")}
        return Logits(output.logits, local_logits(output.features, output.head, **options))
