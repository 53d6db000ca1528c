"""What a student is trained on: cross-entropy, KD, and KD with iCD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icd_kernels import ICDLoss
from training.networks import Network

Terms = dict[str, Tensor]
"""The loss and its parts, each a scalar before its weight: "loss", "ce", and where they are used "kd" and "icd"."""


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of the softened logits, mean over the batch (Hinton et al., arXiv:1503.02531)."""
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def cross_entropy(network: Network, images: Tensor, labels: Tensor) -> Terms:
    """No distillation."""
    loss = F.cross_entropy(network(images), labels)
    return {"loss": loss, "ce": loss}


class Distillation:
    """(1 - kd_weight)·CE + kd_weight·KD, plus icd_weight·iCD where there is an iCD loss."""

    def __init__(
        self,
        teacher: Network,
        kd_weight: float,
        kd_temperature: float,
        icd: ICDLoss | None = None,
        icd_weight: float = 0.0,
    ) -> None:
        self.teacher = teacher
        self.kd_weight = kd_weight
        self.kd_temperature = kd_temperature
        self.icd = icd
        self.icd_weight = icd_weight

    def __call__(self, student: Network, images: Tensor, labels: Tensor) -> Terms:
        features = student.features(images)
        logits = student.classify(features)
        with torch.no_grad():
            teacher_features = self.teacher.features(images)
            teacher_logits = self.teacher.classify(teacher_features)
        terms = {"ce": F.cross_entropy(logits, labels), "kd": kd_loss(logits, teacher_logits, self.kd_temperature)}
        loss = (1 - self.kd_weight) * terms["ce"] + self.kd_weight * terms["kd"]
        if self.icd is not None:
            terms["icd"] = self.icd(features, student.head, teacher_features, self.teacher.head)
            loss = loss + self.icd_weight * terms["icd"]
        return {"loss": loss, **terms}
