"""CRD's memories: embeddings of images seen before, a row for every image of the data set or a queue of the latest.

Inside `torch.utils.checkpoint` a forward runs twice, the second time in the backward: that one must find the memory as
the first one found it, or the gradient is of another loss.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.objectives.batch import check_indices
from icd_kernels.objectives.negatives import Negatives


class Scores(NamedTuple):
    """Products of embeddings with rows of memory."""

    student: Tensor
    """[B, 1 + k], the student's embeddings with the teacher's rows, the positive first."""
    teacher: Tensor
    """[B, 1 + k], the reverse."""
    is_own: Tensor | None
    """[B, k], where a negative is the image itself; None where none can be."""


class _Before(NamedTuple):
    """Rows of the memory as they were before the last batch."""

    rows: Tensor
    by_name: dict[str, Tensor]


class Memory(nn.Module, ABC):
    """Rows of both networks' embeddings (n, d)."""

    student_memory: Tensor
    teacher_memory: Tensor
    left_out: Tensor
    """How many embeddings were not finite and so not remembered."""
    drawn_from: str
    """What negatives are drawn from, in words."""
    row_buffers: tuple[str, ...] = ("student_memory", "teacher_memory")

    def __init__(self, rows: int, negatives: int, embedding_size: int) -> None:
        super().__init__()
        self.rows = rows
        self.negatives = negatives
        bound = math.sqrt(3 / embedding_size)  # rows of norm 1, about
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(rows, embedding_size).uniform_(-bound, bound))
        self.register_buffer("left_out", torch.zeros((), dtype=torch.int64), persistent=False)
        self._before: _Before | None = None
        self._left_out_on_host: Tensor | None = None
        self._has_told = False

    @abstractmethod
    def scores(self, student: Tensor, teacher: Tensor, indices: Tensor | None) -> Scores:
        """Of the embeddings (B, d) of a batch whose images have these `indices`."""

    @abstractmethod
    def _store(self, rows: Tensor, student: Tensor, teacher: Tensor, indices: Tensor | None, is_finite: Tensor) -> None:
        """Writes a batch's embeddings into its `rows`, where they are finite."""

    @abstractmethod
    def _rows_of(self, batch: int, indices: Tensor | None) -> Tensor:
        """The rows (B,) that a batch goes to."""

    @torch.no_grad()
    def remember(self, student: Tensor, teacher: Tensor, indices: Tensor | None, is_finite: Tensor) -> None:
        """Takes in the embeddings (B, d) of a batch that is trained on, where they are finite."""
        if torch.compiler.is_compiling():
            self._store(self._rows_of(len(student), indices), student, teacher, indices, is_finite)
            return
        if _in_backward() and self._before is not None:  # the first forward has remembered them
            return
        rows = self._rows_of(len(student), indices)
        before = _Before(rows, {name: getattr(self, name)[rows] for name in self.row_buffers})
        self._store(rows, student, teacher, indices, is_finite)
        self._before = None if _in_backward() else before
        self.left_out += (~is_finite).sum()
        self._tell()

    def pass_by(self) -> None:
        """Notes a forward that is not trained on: of evaluation, or the first of a reentrant checkpoint."""
        if not torch.compiler.is_compiling() and not _in_backward():
            self._before = None

    def _seen(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of a buffer as this forward finds it."""
        memory = getattr(self, name).to(dtype, copy=True)
        if not torch.compiler.is_compiling() and _in_backward() and self._before is not None:
            memory.index_copy_(0, self._before.rows, self._before.by_name[name].to(dtype))
        return memory

    def _tell(self) -> None:
        """Warns of the first embedding that was left out; never waits for a device, so perhaps a step later."""
        if self._has_told:
            return
        if self._left_out_on_host is None:
            is_cuda = self.left_out.device.type == "cuda"
            self._left_out_on_host = torch.zeros((), dtype=torch.int64, pin_memory=is_cuda)
        self._left_out_on_host.copy_(self.left_out, non_blocking=True)
        if self._left_out_on_host.tolist():
            self._has_told = True
            warnings.warn(
                "CRD leaves out images whose embedding is not finite (an overflow, say); they are counted in left_out",
                stacklevel=2,
            )


class DataSetMemory(Memory):
    """A row for every image of the data set, by its index; a row is a moving average of the image's embeddings."""

    def __init__(
        self,
        rows: int,
        negatives: int,
        labels: Tensor | Sequence[int] | None,
        embedding_size: int,
        momentum: float,
    ) -> None:
        draw = Negatives(rows, negatives, labels)
        super().__init__(rows, draw.count, embedding_size)
        self.draw = draw
        self.momentum = momentum
        self.drawn_from = "other images" if labels is None else "other classes"

    def scores(self, student: Tensor, teacher: Tensor, indices: Tensor | None) -> Scores:
        """All n products and a choice among them move less memory than gathering k rows of d numbers."""
        rows = self._rows_of(len(student), indices)
        columns = torch.cat((rows[:, None], self.draw.draw(rows)), dim=1)  # [B, 1 + k]
        by_teacher, by_student = (
            self._seen("teacher_memory", student.dtype),
            self._seen("student_memory", teacher.dtype),
        )
        return Scores(
            (student @ by_teacher.t()).gather(1, columns), (teacher @ by_student.t()).gather(1, columns), None
        )

    def _rows_of(self, batch: int, indices: Tensor | None) -> Tensor:
        return check_indices(indices, batch)

    def _store(self, rows: Tensor, student: Tensor, teacher: Tensor, indices: Tensor | None, is_finite: Tensor) -> None:
        for memory, embedding in ((self.student_memory, student), (self.teacher_memory, teacher)):
            old = memory[rows]
            new = self.momentum * old + (1 - self.momentum) * embedding.to(memory.dtype)
            memory.index_copy_(0, rows, torch.where(is_finite[:, None], F.normalize(new, dim=1), old))


class QueueMemory(Memory):
    """The embeddings of the latest n images. The positive is the other network's embedding of the same batch.

    Where a batch has indices, a negative that holds the image itself counts nothing.
    """

    position: Tensor
    """(), the row that the next image goes to."""
    images: Tensor
    """(n,), the index of the image in each row; -1 where it is not known."""
    drawn_from = "the latest images"
    row_buffers = ("student_memory", "teacher_memory", "images")

    def __init__(self, rows: int, negatives: int, embedding_size: int) -> None:
        super().__init__(rows, min(negatives, rows), embedding_size)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("images", torch.full((rows,), -1))

    def scores(self, student: Tensor, teacher: Tensor, indices: Tensor | None) -> Scores:
        batch = len(student)
        if batch > self.rows:
            raise ValueError(f"memory_size must be at least the batch, {batch} images, got {self.rows}")
        if indices is not None:
            check_indices(indices, batch)
        columns = torch.randint(self.rows, (batch, self.negatives), device=student.device)
        by_teacher, by_student = (
            self._seen("teacher_memory", student.dtype),
            self._seen("student_memory", teacher.dtype),
        )
        is_own = None
        if indices is not None:
            is_own = self._seen("images", torch.int64)[columns] == indices[:, None]
        return Scores(
            _beside((student * teacher.detach()).sum(1), (student @ by_teacher.t()).gather(1, columns)),
            _beside((teacher * student.detach()).sum(1), (teacher @ by_student.t()).gather(1, columns)),
            is_own,
        )

    def _rows_of(self, batch: int, indices: Tensor | None) -> Tensor:
        return (self.position + torch.arange(batch, device=self.position.device)) % self.rows

    def _store(self, rows: Tensor, student: Tensor, teacher: Tensor, indices: Tensor | None, is_finite: Tensor) -> None:
        for memory, embedding in ((self.student_memory, student), (self.teacher_memory, teacher)):
            memory.index_copy_(0, rows, torch.where(is_finite[:, None], embedding.to(memory.dtype), memory[rows]))
        images = torch.full_like(rows, -1) if indices is None else indices
        self.images.index_copy_(0, rows, torch.where(is_finite, images, self.images[rows]))
        self.position.copy_((self.position + len(rows)) % self.rows)


def _beside(positive: Tensor, negatives: Tensor) -> Tensor:
    return torch.cat((positive[:, None], negatives), dim=1)


def _in_backward() -> bool:
    """Whether this runs within a backward pass, as a checkpoint's second forward does."""
    return torch._C._current_graph_task_id() != -1
