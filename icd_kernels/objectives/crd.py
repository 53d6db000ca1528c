"""CRD: an image's two embeddings attract each other and repel those of other images (Tian et al., arXiv:1910.10699)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.objectives.batch import Batch, check_indices
from icd_kernels.objectives.negatives import Negatives
from icd_kernels.objectives.targets import reduced


class CRDTerm(nn.Module):
    """-log D(positive) - Σ log(1 - D(negative)), the student's embedding against the teacher's memory and the reverse.

    v is the pooled map through a linear layer, divided by its norm. A score is s = ⟨v, memory row⟩ / T, the positive
    the image's own row and k negatives drawn from the others; D = P / (P + k/n) with P = e^s / Z,
    computed as a sigmoid of s - log Z - log(k/n). Z is n times the mean of e^s over the first batch, then constant.
    After its scores are taken a row becomes momentum·row + (1 - momentum)·v, divided by its norm; only in training
    mode. Reads no target.

    The two memories (n, d), log Z and the labels are buffers: a state dict holds them, and a resumed run goes on as an
    unbroken one if the random generators are restored too.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    log_normalizers: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        negatives: Negatives,
        *,
        embedding_size: int,
        momentum: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.student_embedding = nn.Linear(student_channels, embedding_size)
        self.teacher_embedding = nn.Linear(teacher_channels, embedding_size)
        self.negatives = negatives
        self.momentum = momentum
        self.temperature = temperature
        bound = math.sqrt(3 / embedding_size)  # rows of norm 1, about
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(negatives.rows, embedding_size).uniform_(-bound, bound))
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student = _embed(self.student_embedding, batch.student.features, "student")
        teacher = _embed(self.teacher_embedding, batch.teacher.features, "teacher")
        indices = check_indices(batch.indices, student.shape[0])
        columns = torch.cat((indices[:, None], self.negatives.draw(indices)), dim=1)  # [B, 1 + k]
        scores = (
            self._scores(student, self.teacher_memory, columns),
            self._scores(teacher, self.student_memory, columns),
        )
        log_z = self._log_normalizers(scores)
        loss = self._contrast(scores[0], log_z[0]) + self._contrast(scores[1], log_z[1])
        if self.training:
            self.log_normalizers.copy_(log_z)
            self._remember(self.student_memory, indices, student)
            self._remember(self.teacher_memory, indices, teacher)
        return reduced(loss, reduction)

    def _scores(self, embedding: Tensor, memory: Tensor, columns: Tensor) -> Tensor:
        """[B, 1 + k]. All n scores and a choice among them move less memory than gathering k rows of d numbers."""
        return (embedding @ memory.to(embedding.dtype, copy=True).t()).gather(1, columns) / self.temperature

    def _log_normalizers(self, scores: tuple[Tensor, Tensor]) -> Tensor:
        """log Z of both directions: the buffer's, or where there is none yet that of these scores."""
        scale = math.log(self.negatives.rows / scores[0].numel())
        estimates = torch.stack([score.detach().flatten().logsumexp(0) + scale for score in scores])
        return torch.where(self.log_normalizers.isnan(), estimates, self.log_normalizers)

    def _contrast(self, scores: Tensor, log_z: Tensor) -> Tensor:
        log_noise = math.log(self.negatives.count / self.negatives.rows)
        margin = scores - log_z - log_noise
        return -F.logsigmoid(margin[:, 0]) - F.logsigmoid(-margin[:, 1:]).sum(1)

    @torch.no_grad()
    def _remember(self, memory: Tensor, indices: Tensor, embedding: Tensor) -> None:
        row = self.momentum * memory[indices] + (1 - self.momentum) * embedding.detach().to(memory.dtype)
        memory.index_copy_(0, indices, F.normalize(row, dim=1))


def _embed(embedding: nn.Linear, features: Tensor, name: str) -> Tensor:
    """The pooled map (B, C) through the layer, divided by its norm, in the layer's dtype."""
    if features.shape[1] != embedding.in_features:
        raise ValueError(
            f"{name}.features must have the {embedding.in_features} channels of {name}_channels, "
            f"got shape {tuple(features.shape)}"
        )
    return F.normalize(embedding(features.to(embedding.weight.dtype).mean((2, 3))), dim=1)
