"""What a network is trained on: cross-entropy alone, or a method's objective against a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icd_kernels import NetworkOutput
from icd_kernels.objectives import Objective
from training.data import Batch
from training.networks import Network

Terms = dict[str, Tensor]
"""The loss as "loss", and by their names its parts, each a scalar before its weight: "ce", the base's, "icd"."""


TeacherOutputs = Callable[[Batch], NetworkOutput]
"""What the teacher says of a batch, whether it is run or has been."""


class Loss(Protocol):
    """A loss of a network's batch."""

    @property
    def module(self) -> nn.Module:
        """What it trains and keeps besides the network: CRD's embeddings and memory; nothing, for most."""

    def __call__(self, network: Network, batch: Batch, epoch: int) -> Terms: ...


class CrossEntropy:
    """No distillation."""

    def __init__(self) -> None:
        self.module = nn.Module()

    def __call__(self, network: Network, batch: Batch, epoch: int) -> Terms:
        loss = F.cross_entropy(network(batch.images).logits, batch.labels)
        return {"loss": loss, "ce": loss}


class Distillation:
    """A method's objective against the teacher."""

    def __init__(self, teacher: TeacherOutputs, objective: Objective) -> None:
        self.teacher = teacher
        self.module = objective

    def __call__(self, network: Network, batch: Batch, epoch: int) -> Terms:
        with torch.no_grad():
            teacher = self.teacher(batch)
        output = self.module(network(batch.images), teacher, batch.labels, epoch=epoch, indices=batch.indices)
        return {"loss": output.total, **output.components}


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T²·KL(teacher ‖ student) of the softened logits, mean over the batch (Hinton et al., arXiv:1503.02531)."""
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
