"""gram_kl: the Gram stage on logits that are already there, in one launch; and its backward."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.cells import store
from icd_kernels.backends.triton.gram_stage import gram_task, reduce_losses
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import (
    GramPlan,
    Layout,
    ceil_div,
    gram_precision,
    layout,
    loss_of_nothing,
    pitch_of,
    plan_gram,
    precision,
    spaces,
)
from icd_kernels.backends.triton.structs import Logits, Work
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.checks import compute_dtype
from icd_kernels.problem import NONE, SPATIAL, GramOptions

SCALE_BLOCK = 1024


@triton.jit(do_not_specialize=["batch", "wants_gradient"])
def gram_kl_kernel(
    student,
    teacher,
    work,
    counters,
    batch,
    wants_gradient,
    temperature: tl.float64,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """The tasks of the Gram stage, on logits that nothing has divided."""
    whole = (1, 1, 0)
    gram_task(
        draw_task(counters), student, teacher, whole, whole, work, counters, batch, temperature, wants_gradient, FORM
    )
    if is_last_task(counters, 0):
        reduce_losses(work, batch, FORM)
        reset(counters, SLOT)


@triton.jit
def scale_kernel(p_out, p_gradient, p_upstream, stride_upstream, image_size, BLOCK: tl.constexpr):
    """Every image's dl/dz times its upstream gradient, where one is given."""
    blocks = tl.cdiv(image_size, BLOCK)
    image = tl.program_id(0) // blocks
    o_image = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    b_gradient = tl.load(p_gradient + image.to(tl.int64) * image_size + o_image, mask=o_image < image_size)
    if p_upstream is not None:
        b_gradient *= tl.load(p_upstream + image.to(tl.int64) * stride_upstream).to(b_gradient.dtype)
    store(p_out + image.to(tl.int64) * image_size + o_image, b_gradient, o_image < image_size)


def gram_kl(student_logits: Tensor, teacher_logits: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    """The operator gram_kl (icd_kernels/operators.py)."""
    options, save_gradient = GramOptions(*numbers[:-1]), numbers[-1]
    dtype = compute_dtype(student_logits, teacher_logits)
    batch, classes, cells = student_logits.shape
    loss = student_logits.new_empty((batch,) if options.reduction == NONE else (), dtype=dtype)
    keeps = options.keeps_logits and save_gradient
    saved = loss.new_empty(((2,) if keeps else ()) + (batch, cells, classes) if save_gradient else (0,))
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
    if batch == 0:
        return gradient.transpose(1, 2)
    if options.keeps_logits:
        exact = gradient if dtype == saved.dtype else saved.new_empty(gradient.shape)
        backward_of_rows(grad_loss, saved, exact, 0, options)
        if exact is not gradient:
            _scale(gradient, exact, None)
    else:
        _scale(gradient, saved, grad_loss)
    return gradient.transpose(1, 2)


def _scale(gradient: Tensor, saved: Tensor, upstream: Tensor | None) -> None:
    """Writes `saved` times the images' upstream gradient, if any, in the dtype of `gradient`."""
    size = saved.shape[1] * saved.shape[2]
    stride = 0 if upstream is None or upstream.ndim == 0 else upstream.stride(0)
    launch = _scale_launch(layout(saved), gradient.dtype, layout(upstream))

    def arguments(saved: Tensor, upstream: Tensor | None) -> Any:
        return gradient, saved, upstream, stride, size

    launch(saved.device, arguments, (saved, upstream), (gradient,))


@lru_cache(maxsize=1024)
def _scale_launch(saved: Layout, dtype: torch.dtype, upstream: Layout | None) -> Launch:
    batch, cells, classes = saved.shape
    return Launch(scale_kernel, batch * ceil_div(cells * classes, SCALE_BLOCK), BLOCK=SCALE_BLOCK)


def backward_of_rows(
    grad_loss: Tensor,
    saved: Tensor,
    gradient: Tensor,
    finest: int,
    options: GramOptions,
) -> None:
    """dl/dz of sample with reduction "none", which mixes the images' upstream gradients, from the kept logits.

    Writes (B, cells, K): every cell; or where `finest` is not 0 (B, finest², pitch), the others folded onto that grid.
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
    plan, sizes, launch = _plan(
        *map(layout, (student, teacher, raw, upstream)), loss.device, loss.dtype, precision(loss.dtype),
        configs.class_sum(student.shape[2]), options.without_temperature(), gradient is not None, finest,
    )  # fmt: skip
    space = loss.new_empty(sum(sizes))
    nodes = loss.new_empty(plan.nodes_size, dtype=torch.float64)
    slot = counter_slots.counters_for(loss.device)

    def arguments(student: Tensor, teacher: Tensor, gradient: Tensor | None, upstream: Tensor | None) -> Any:
        outputs = _Outputs(loss, gradient, raw, upstream, finest)
        return (
            _given(student),
            _given(teacher),
            _work(plan, space.split_with_sizes(sizes), nodes, outputs, student.shape[2]),
            slot.counters,
            student.shape[0],
            int(plan.gradient),
        )

    allocated = (loss, space, nodes, slot.table, *(() if raw is None else (raw,)))
    given = (student, teacher, gradient, upstream)
    launch(loss.device, arguments, given, allocated, slot.stream, (options.temperature,))


class _Outputs(NamedTuple):
    """What :func:`run_gram` writes, and the upstream gradients it reads."""

    loss: Tensor
    gradient: Tensor | None
    raw: Tensor | None
    upstream: Tensor | None
    finest: int


def _work(plan: GramPlan, pieces: Sequence[Tensor], nodes: Tensor, outputs: _Outputs, classes: int) -> Work:
    """What the Gram stage works on and writes; what it does not touch is some piece of the workspace."""
    z_student, z_teacher, divisor, rows, unit_loss, image_loss, all_cells = pieces
    loss, gradient, raw, upstream, finest = outputs
    out = z_student if gradient is None else gradient
    return Work(
        p_student=z_student,
        p_teacher=z_teacher,
        p_student_raw=None if raw is None else raw[0],
        p_teacher_raw=None if raw is None else raw[1],
        p_divisor=divisor,
        p_rows=z_student if gradient is None else rows,
        p_nodes=nodes if plan.nodes_size else None,
        p_unit_loss=unit_loss,
        p_image_loss=image_loss if loss.ndim == 0 else loss,
        p_loss=loss,
        p_gradient=all_cells if finest else out,
        p_saved=out if finest else None,
        p_upstream=upstream,
        stride_upstream=0 if upstream is None else upstream.stride(0),
        classes=classes,
        pitch=pitch_of(classes) if finest else classes,
    )


@lru_cache(maxsize=1024)
def _plan(
    student: Layout,
    teacher: Layout,
    raw: Layout | None,
    upstream: Layout | None,
    device: torch.device,
    dtype: torch.dtype,
    products: str,
    class_sum: str,
    options: GramOptions,
    gradient: bool,
    finest: int,
) -> tuple[GramPlan, tuple[int, ...], Launch]:
    """The Gram stage, its workspace and its launch."""
    batch, cells, classes = student.shape
    plan = plan_gram(
        batch, classes, dtype, options, gradient, finest, gram_precision(products), 0, 0, class_sum,
        configs.double_cost(device),
    )  # fmt: skip
    image = batch * cells * pitch_of(classes)
    sizes = spaces(
        image, image, batch * cells, plan.rows_size, batch * plan.units, 0 if options.reduction == NONE else batch,
        image if finest else 0,
    )  # fmt: skip
    registers = None if options.gram == SPATIAL else configs.registers(options.gram, classes, dtype)
    return plan, sizes, Launch(gram_kl_kernel, plan.tasks, registers=registers, FORM=plan.form, SLOT=counter_slots.SLOT)


def _given(logits: Tensor) -> Logits:
    """Logits (B, N, K) that wait for nothing."""
    image, cell, depth = logits.stride()
    return Logits(logits, None, logits.shape[2], image, cell, depth)
