"""gram_kl: the Gram stage on logits that are already there, in one launch; and its backward."""

from typing import Any

import torch
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.plan import plan_gram_kl, plan_scale
from icd_kernels.backends.triton.plan_parts import layout, loss_of_nothing, pitch_of
from icd_kernels.backends.triton.structs import Logits
from icd_kernels.backends.triton.work import work_of
from icd_kernels.checks import compute_dtype
from icd_kernels.problem import NONE, GramOptions


def gram_kl(student_logits: Tensor, teacher_logits: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    """The operator gram_kl (icd_kernels/operators.py)."""
    options, save_gradient = GramOptions(*numbers[:-1]), numbers[-1]
    dtype = compute_dtype(student_logits, teacher_logits)
    batch, classes, cells = student_logits.shape
    loss = student_logits.new_empty((batch,) if options.reduction == NONE else (), dtype=dtype)
    keeps = options.keeps_logits and save_gradient
    if keeps:
        saved = loss.new_empty((2, batch, cells, classes))
    else:
        saved = rows(loss, batch, cells, classes) if save_gradient else loss.new_empty(0)
    if batch == 0:
        return loss.fill_(loss_of_nothing(options)), saved
    run_gram(
        student_logits.transpose(1, 2), teacher_logits.transpose(1, 2), loss, options,
        gradient=saved if save_gradient and not keeps else None, raw=saved if keeps else None,
    )  # fmt: skip
    return loss, saved


def gram_kl_backward(grad_loss: Tensor, saved: Tensor, dtype: torch.dtype, *numbers: Any) -> Tensor:
    """The operator gram_kl_backward (icd_kernels/operators.py)."""
    options = GramOptions(*numbers)
    batch, cells, classes = saved.shape[-3:]
    gradient = saved.new_empty((batch, cells, classes), dtype=dtype)
    if batch > 0:
        upstream: Tensor | None = grad_loss
        if options.keeps_logits:
            exact = rows(saved, batch, cells, classes)
            backward_of_rows(grad_loss, saved, exact, 0, options)
            saved, upstream = exact, None
        _scale(gradient, saved, upstream)
    return gradient.transpose(1, 2)


def _scale(gradient: Tensor, saved: Tensor, upstream: Tensor | None) -> None:
    """Writes `saved` times the images' upstream gradient, if any, in the dtype of `gradient`."""
    stride = 0 if upstream is None or upstream.ndim == 0 else upstream.stride(0)
    launch = plan_scale(layout(saved), gradient.dtype, layout(upstream))

    def arguments(saved: Tensor, upstream: Tensor | None) -> Any:
        return gradient, saved, *saved.stride(), upstream, stride, *saved.shape[1:]

    launch(saved.device, arguments, (saved, upstream), (gradient,))


def backward_of_rows(
    grad_loss: Tensor,
    saved: Tensor,
    gradient: Tensor,
    finest: int,
    options: GramOptions,
) -> None:
    """dl/dz of sample with reduction "none", which mixes the images' upstream gradients, from the kept logits.

    Writes (B, cells, pitch): every cell; or where `finest` is not 0 (B, finest², pitch), the others folded onto that
    grid.
    """
    loss = saved.new_empty(saved.shape[1])
    run_gram(saved[0], saved[1], loss, options, gradient=gradient, upstream=grad_loss, finest=finest)


def run_gram(
    student: Tensor,
    teacher: Tensor,
    loss: Tensor,
    options: GramOptions,
    *,
    gradient: Tensor | None = None,
    raw: Tensor | None = None,
    upstream: Tensor | None = None,
    finest: int = 0,
) -> None:
    """Launches the Gram stage on logits (B, N, K) of any strides, writing to `loss`, `gradient` and `raw`."""
    plan, sizes, launch = plan_gram_kl(
        *map(layout, (student, teacher, raw, upstream)), loss.device, loss.dtype,
        torch.get_float32_matmul_precision(), configs.class_sum(student.shape[2]), options.without_temperature(),
        gradient is not None, finest,
    )  # fmt: skip
    space = loss.new_empty(sum(sizes))
    nodes = loss.new_empty(plan.nodes_size, dtype=torch.float64)
    slot = counter_slots.counters_for(loss.device)

    def arguments(student: Tensor, teacher: Tensor, gradient: Tensor | None, upstream: Tensor | None) -> Any:
        classes = student.shape[2]
        return (
            _given(student),
            _given(teacher),
            work_of(
                plan,
                space.split_with_sizes(sizes),
                nodes,
                loss,
                gradient,
                raw,
                upstream,
                classes,
                pitch_of(classes),
            ),
            slot.counters,
            student.shape[0],
            int(plan.gradient),
        )

    allocated = (loss, space, nodes, slot.table, *(() if raw is None else (raw,)))
    given = (student, teacher, gradient, upstream)
    launch(loss.device, arguments, given, allocated, slot.stream, (options.temperature,))


def rows(like: Tensor, batch: int, cells: int, classes: int) -> Tensor:
    """(B, N, K) to write, whose rows start at multiples of the pitch."""
    return like.new_empty((batch, cells, pitch_of(classes)))[..., :classes]


def _given(logits: Tensor) -> Logits:
    """Logits (B, N, K) that wait for nothing."""
    image, cell, depth = logits.stride()
    return Logits(logits, None, logits.shape[2], image, cell, depth)
