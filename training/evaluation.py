"""Every student measured the same way on the test images, whatever it was trained on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icd_kernels import ICDLoss, gram_kl, region_logits
from training.data import Images
from training.losses import kd_loss
from training.networks import Network

BATCH_SIZE = 250
MEASURES = ("test_top1", "test_ce", "test_kd", "test_icd")


class Evaluation:
    """Top-1 and the three losses on the test images. The teacher's side is computed once."""

    def __init__(self, images: Images, teacher: Network, kd_temperature: float, icd: ICDLoss) -> None:
        self.images = images.test_images
        self.labels = images.test_labels
        self.kd_temperature = kd_temperature
        self.icd = {**icd.options._asdict(), "backend": icd.backend}  # as `icd_loss` takes them
        self.teacher = self._logits(teacher)

    @torch.no_grad()
    def __call__(self, student: Network) -> dict[str, float]:
        """Means over the test images: "test_top1" in percent, "test_ce", "test_kd", "test_icd"."""
        options = {name: option for name, option in self.icd.items() if name != "pyramid"}
        sums = torch.zeros(4, dtype=torch.float64, device=self.images.device)
        batches = zip(self._logits(student), self.teacher, self.labels.split(BATCH_SIZE), strict=True)
        for (logits, regions), (teacher_logits, teacher_regions), labels in batches:
            means = (
                100 * (logits.argmax(1) == labels).float().mean(),
                F.cross_entropy(logits, labels),
                kd_loss(logits, teacher_logits, self.kd_temperature),
                gram_kl(regions, teacher_regions, **options),
            )
            sums += torch.stack(means) * len(labels)
        return dict(zip(MEASURES, (sums / len(self.labels)).tolist(), strict=True))

    @torch.no_grad()
    def regions(self, network: Network, images: Tensor) -> Tensor:
        """Local logits (n, K, N) of some images."""
        network.eval()
        return self._regions(network, network.features(images))

    @torch.no_grad()
    def _logits(self, network: Network) -> list[tuple[Tensor, Tensor]]:
        """Of each test batch: logits (n, K) and local logits (n, K, N)."""
        network.eval()
        maps = (network.features(batch) for batch in self.images.split(BATCH_SIZE))
        return [(network.classify(features), self._regions(network, features)) for features in maps]

    def _regions(self, network: Network, features: Tensor) -> Tensor:
        options = {name: self.icd[name] for name in ("scales", "pyramid", "backend")}
        return region_logits(features, network.head.weight, network.head.bias, **options)
