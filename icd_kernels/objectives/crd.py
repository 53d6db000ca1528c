"""CRD: an image's two embeddings attract each other and repel those of other images (Tian et al., arXiv:1910.10699)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.common import CommonOptions, check_count, check_number, set_checked
from icd_kernels.objectives.memory import DataSetMemory, QueueMemory
from icd_kernels.objectives.method import Method
from icd_kernels.objectives.targets import reduced
from icd_kernels.options import check_temperature


@dataclass(frozen=True)
class CRDOptions:
    """CRD's. The channels have to be given, and `dataset_size` or `memory_size`."""

    student_channels: int | None = None
    teacher_channels: int | None = None
    dataset_size: int | None = None
    """n: a row of memory for every image, by its index."""
    memory_size: int | None = None
    """Rows of a queue of the latest images instead, whatever the size of the data set."""
    labels: Tensor | Sequence[int] | None = field(default=None, metadata={"is_recorded": False})
    num_negatives: int = 16384
    embedding_size: int = 128
    momentum: float = 0.5
    temperature: float = 0.07

    def __post_init__(self) -> None:
        for name, least in (("student_channels", 1), ("teacher_channels", 1), ("dataset_size", 2), ("memory_size", 2)):
            if getattr(self, name) is not None:
                set_checked(self, **{name: check_count(name, getattr(self, name), least)})
        momentum = check_number("momentum", self.momentum)
        if momentum > 1:
            raise ValueError(f"momentum must be between 0 and 1, got {momentum!r}")
        set_checked(
            self,
            num_negatives=check_count("num_negatives", self.num_negatives),
            embedding_size=check_count("embedding_size", self.embedding_size),
            momentum=momentum,
            temperature=check_temperature(self.temperature),
        )

    def check_sizes(self) -> None:
        """Raises ValueError where a size is missing, or there are two of the memory."""
        for name in ("student_channels", "teacher_channels"):
            if getattr(self, name) is None:
                raise ValueError(f"method 'crd' needs the option {name}, an int")
        if self.dataset_size is None and self.memory_size is None:
            raise ValueError("method 'crd' needs the option dataset_size, an int, or memory_size for a queue")
        if self.memory_size is not None and (self.dataset_size is not None or self.labels is not None):
            raise ValueError(
                "memory_size makes a queue, without a row for every image: leave out dataset_size and labels"
            )


class CRDTerm(nn.Module):
    """-log D(positive) - Σ log(1 - D(negative)), the student's embedding against the teacher's memory and the reverse.

    v is the pooled map through a linear layer, divided by its norm. A score is s = ⟨v, row⟩ / T, the positive
    the image's own row and k negatives drawn from the others; D = P / (P + k/n) with P = e^s / Z,
    computed as a sigmoid of s - log Z - log(k/n). Z is n times the mean of e^s over the first batch, then constant.
    The memory takes the embeddings in afterwards (memory.py). Reads no target.

    An image whose embedding is not finite, as after an overflow, is not remembered and has no part in Z. Such images
    are counted in `memory.left_out`, and a warning tells of the first.

    The memories and log Z are buffers: a state dict holds them, and a resumed run goes on as an unbroken one if the
    random generators are restored too.
    """

    log_normalizers: Tensor

    def __init__(self, options: CRDOptions) -> None:
        super().__init__()
        options.check_sizes()
        assert options.student_channels is not None
        assert options.teacher_channels is not None
        size = options.embedding_size
        self.student_embedding = nn.Linear(options.student_channels, size)
        self.teacher_embedding = nn.Linear(options.teacher_channels, size)
        self.memory: DataSetMemory | QueueMemory
        if options.memory_size is not None:
            self.memory = QueueMemory(options.memory_size, options.num_negatives, size)
        else:
            assert options.dataset_size is not None
            self.memory = DataSetMemory(
                options.dataset_size, options.num_negatives, options.labels, size, options.momentum
            )
        self.temperature = options.temperature
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))

    @property
    def settings(self) -> dict[str, Any]:
        """What became of the options."""
        return {"num_negatives": self.memory.negatives, "negatives": self.memory.drawn_from}

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student = _embed(self.student_embedding, batch.student.features, "student")
        teacher = _embed(self.teacher_embedding, batch.teacher.features, "teacher")
        is_finite = (student.detach().sum(1) + teacher.detach().sum(1)).isfinite()
        found = self.memory.scores(student, teacher, batch.indices)
        scores = (found.student / self.temperature, found.teacher / self.temperature)
        log_z = self._log_normalizers(scores, is_finite)
        loss = self._contrast(scores[0], log_z[0], found.is_own) + self._contrast(scores[1], log_z[1], found.is_own)
        if self.training and torch.is_grad_enabled():
            self.log_normalizers.copy_(log_z)
            self.memory.remember(student.detach(), teacher.detach(), batch.indices, is_finite)
        else:
            self.memory.pass_by()
        return reduced(loss, reduction)

    def _log_normalizers(self, scores: tuple[Tensor, Tensor], is_finite: Tensor) -> Tensor:
        """log Z of both directions: the buffer's, or where there is none yet that of these scores."""
        count = is_finite.sum() * scores[0].shape[1]
        scale = math.log(self.memory.rows) - count.to(scores[0].dtype).log()
        estimates = torch.stack(
            [
                each.detach().masked_fill(~is_finite[:, None], -math.inf).flatten().logsumexp(0) + scale
                for each in scores
            ]
        )
        return torch.where(self.log_normalizers.isnan(), estimates, self.log_normalizers)

    def _contrast(self, scores: Tensor, log_z: Tensor, is_own: Tensor | None) -> Tensor:
        log_noise = math.log(self.memory.negatives / self.memory.rows)
        margin = scores - log_z - log_noise
        apart = F.logsigmoid(-margin[:, 1:])
        if is_own is not None:
            apart = apart.masked_fill(is_own, 0.0)
        return -F.logsigmoid(margin[:, 0]) - apart.sum(1)


def _embed(embedding: nn.Linear, features: Tensor, name: str) -> Tensor:
    """The pooled map (B, C) through the layer, divided by its norm, in the layer's dtype."""
    if features.shape[1] != embedding.in_features:
        raise ValueError(
            f"{name}.features must have the {embedding.in_features} channels of {name}_channels, "
            f"got shape {tuple(features.shape)}"
        )
    return F.normalize(embedding(features.to(embedding.weight.dtype).mean((2, 3))), dim=1)


CRD = Method("crd", CommonOptions(base_weight=0.8), CRDOptions(), CRDTerm, needs_features=True)
