"""The loss over the batch of all processes, and classifiers that are sharded among them.

Forms "class" and "spatial" need nothing of this: their loss is a mean over images, and DDP's mean over equal shards is
the mean over the whole batch. `gram="sample"` compares images with each other, so a process has to see all of them.
What it sees are their local logits, B·K·N numbers; the maps stay where they are.

Who divides by the number of processes R: the loss of :class:`GatheredICDLoss` is that of the whole batch in every
process, and backward sums the R gradients that a row receives. Averaged over the processes, as DDP and FSDP do, a
parameter's gradient is that of one process with the whole batch; summed, it is R times that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from icd_kernels import checks
from icd_kernels.functional import gram_kl
from icd_kernels.heads import Head, head_parameters
from icd_kernels.module import ICDLoss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def gather_batch(tensor: Tensor, group: ProcessGroup | None = None, *, equal_batches: bool = False) -> Tensor:
    """The rows of every process, in the order of their ranks; differentiable, any number of times.

    The gradient of a process's rows is the sum of what all processes send back to them. Every process of the group has
    to make the call and, where there is one, the backward.

    Args:
        tensor: (B, ...), of one dtype in all processes. B may differ between them, the rest may not.
        group: the processes; None is all.
        equal_batches: a promise that B is the same in every process. Without it the processes ask each other, and then
            a GPU's host waits and torch.compile breaks its graph.

    Returns:
        (sum of B, ...). `tensor` itself without a process group, or in a group of one.

    Raises:
        TypeError, ValueError: an argument is wrong, or rows differ in size between processes; raised in all of them.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor of shape (B, ...), got {type(tensor).__name__}")
    if tensor.ndim == 0:
        raise ValueError("tensor must have shape (B, ...), got ()")
    if world_size(group) == 1:
        return tensor
    return _gather(tensor, _row_counts(tensor, group, equal_batches), group)


class GatheredICDLoss(ICDLoss):
    """:class:`icd_kernels.ICDLoss` of the batch of all processes, for `gram="sample"` in distributed training.

    Every process gets the same loss, and with reduction "none" that of every image, in the order of the ranks. The
    gradients are right where they are averaged over the processes; see above. Without a process group, or in a group
    of one, it is `ICDLoss`. It takes two kernels in place of one: local logits are all-gathered between them.

    Args:
        group: the processes; None is all.
        equal_batches: as for :func:`gather_batch`.
        options: as for `ICDLoss`.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it, what was expected and what came.
    """

    def __init__(self, *, group: ProcessGroup | None = None, equal_batches: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.group = group
        self.equal_batches = equal_batches

    def forward(
        self, student_features: Tensor, student_head: Head, teacher_features: Tensor, teacher_head: Head
    ) -> Tensor:
        """As `ICDLoss.forward`, of this process's images."""
        if world_size(self.group) == 1:
            return super().forward(student_features, student_head, teacher_features, teacher_head)
        options = self.options._asdict()
        options.pop("pyramid")
        student_logits, teacher_logits = self.local_logits(
            student_features, student_head, teacher_features, teacher_head
        )  # each [B, K, N]
        checks.check_logits(student_logits, teacher_logits, self.options.scales)
        counts = _row_counts(student_logits, self.group, self.equal_batches)
        gathered = (_gather(logits, counts, self.group) for logits in (student_logits, teacher_logits))
        return gram_kl(*gathered, **options, backend=self.backend) * self.weight


def full_head(head: Head, name: str = "head") -> tuple[Tensor, Tensor | None]:
    """Weight (K, C) and bias (K,) of a head whose parameters are DTensors (FSDP2), gathered from all processes.

    Their gradient is averaged over the processes, as that of FSDP's own forward is. `weight.full_tensor()` alone is
    enough for a teacher, but not for a student: it takes every process's gradient for the same.

    Args:
        head: as for `ICDLoss.forward`; parameters that are no DTensors come back as they are.
        name: what an error calls it.

    Raises:
        TypeError, ValueError: as `ICDLoss.forward` raises them for a head.
    """
    weight, bias = head_parameters(head, name)
    return _full(weight), None if bias is None else _full(bias)


def _full(tensor: Tensor) -> Tensor:
    if not checks.is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, Partial  # here: slow to import, and absent from some builds of torch

    assert isinstance(tensor, DTensor)
    return tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim)


def world_size(group: ProcessGroup | None = None) -> int:
    """The number of processes in the group: 1 where torch.distributed is missing or not initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("group must contain this process, got a group without it")
    return size


def _row_counts(tensor: Tensor, group: ProcessGroup | None, equal_batches: bool) -> tuple[int, ...]:
    """Every process's number of rows, after a look at whether the rows are of one size."""
    if equal_batches:
        return (tensor.shape[0],) * world_size(group)
    own = torch.tensor([tensor.shape[0], math.prod(tensor.shape[1:])], device=tensor.device)
    every = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(every, own, group=group)
    counts, sizes = zip(*torch.stack(every).tolist(), strict=True)
    if len(set(sizes)) > 1:
        raise ValueError(f"tensor must have rows of one size in every process, got {sizes} elements by rank")
    return counts


def _gather(tensor: Tensor, counts: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
    return _Gather.apply(tensor, counts, group)


class _Gather(Function):
    """All processes' rows. Its adjoint is :class:`_SumOfOwnRows`, whose adjoint it is."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])  # a collective needs equal sizes
        padded[: tensor.shape[0]] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _SumOfOwnRows.apply(grad, ctx.counts, ctx.group), None, None


class _SumOfOwnRows(Function):
    """This process's rows of the sum over all processes of a tensor that has the rows of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, counts: tuple[int, ...], group: ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group = counts, group
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total.split(counts)[dist.get_rank(group)].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grad, ctx.counts, ctx.group), None, None
