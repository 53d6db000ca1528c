"""icd_loss: from two feature maps to the loss and dl/dz in one launch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.gram_stage import gram_task, reduce_losses
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import (
    GramPlan,
    Layouts,
    NetworkPlan,
    class_sum_of,
    gram_precision,
    layouts,
    loss_of_nothing,
    pitch_of,
    plan_gram,
    plan_network,
    precision,
    spaces,
)
from icd_kernels.backends.triton.pooling import pool_task, pool_tasks
from icd_kernels.backends.triton.projection import divided, project_task
from icd_kernels.backends.triton.structs import Counters, Work
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.checks import compute_dtype
from icd_kernels.problem import NONE, GramOptions

# They follow from the batch: compiled for one of them, a kernel would be compiled again for an epoch's last batch.
BATCH_NUMBERS = ["batch", "student_group", "student_splits", "teacher_group", "teacher_splits", "wants_gradient"]


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def icd_loss_kernel(
    student,
    teacher,
    student_logits,
    teacher_logits,
    work,
    counters,
    batch,
    student_group,
    student_splits,
    teacher_group,
    teacher_splits,
    wants_gradient,
    temperature: tl.float64,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """Tasks in order: pool teacher, pool student, project teacher, project student, Gram stage.

    Conditions stand beside each other: nested, each level doubles the time some passes of the compiler take.
    """
    student_division = divided(student, student_group, student_splits, STUDENT)
    teacher_division = divided(teacher, teacher_group, teacher_splits, TEACHER)
    task = draw_task(counters)
    first_student_pool = batch * pool_tasks(teacher, TEACHER)
    first_project = first_student_pool + batch * pool_tasks(student, STUDENT)
    first_student_project = first_project + tl.cdiv(batch, teacher_group) * teacher_division[2]
    first_gram = first_student_project + tl.cdiv(batch, student_group) * student_division[2]
    if task < first_student_pool:
        pool_task(task, teacher, counters.p_teacher_pooled, teacher_group, TEACHER)
    if (task >= first_student_pool) & (task < first_project):
        pool_task(task - first_student_pool, student, counters.p_student_pooled, student_group, STUDENT)
    if (task >= first_project) & (task < first_student_project):
        project_task(
            task - first_project, teacher, counters.p_teacher_pooled, counters.p_teacher_logits, batch,
            teacher_division, TEACHER,
        )  # fmt: skip
    if (task >= first_student_project) & (task < first_gram):
        project_task(
            task - first_student_project, student, counters.p_student_pooled, counters.p_student_logits, batch,
            student_division, STUDENT,
        )  # fmt: skip
    if task >= first_gram:
        gram_task(
            task - first_gram, student_logits, teacher_logits, student_division, teacher_division, work, counters,
            batch, temperature, wants_gradient, FORM,
        )  # fmt: skip
    if task >= first_gram:
        if is_last_task(counters, first_gram):
            reduce_losses(work, batch, FORM)
            reset(counters, SLOT)


class _Plan(NamedTuple):
    """All that a call needs but tensors."""

    student: NetworkPlan
    teacher: NetworkPlan
    gram: GramPlan
    keeps: bool
    """Whether logits are saved, rather than dl/dz."""
    saved_shape: tuple[int, ...]
    pooled_shape: tuple[int, ...]
    spaces: tuple[int, ...]
    space: int
    """Numbers of workspace, in pieces of `spaces`."""
    classes: int
    launch: Launch


@lru_cache(maxsize=1024)
def plan_icd_loss(
    student_layouts: Layouts,
    teacher_layouts: Layouts,
    device: torch.device,
    dtype: torch.dtype,
    products: str,
    class_sum: str,
    options: GramOptions,
    student_finest: int,
    teacher_finest: int,
    save_gradient: bool,
    save_pooled: bool,
) -> _Plan:
    batch, classes = student_layouts[0][0][0], student_layouts[1][0][0]
    student = plan_network(student_layouts, dtype, products, options.scales, student_finest)
    teacher = plan_network(teacher_layouts, dtype, products, options.scales, teacher_finest)
    keeps = options.keeps_logits and save_gradient
    gradient = save_gradient and not keeps
    plan = plan_gram(
        batch, classes, dtype, options, gradient, 0 if options.keeps_logits else student_finest,
        gram_precision(products), student_finest, teacher_finest, class_sum, configs.double_cost(device),
    )  # fmt: skip
    cells, base, pitch = plan.form.CELLS, student.constants.CELLS, pitch_of(classes)
    saved_shape = (2, batch, cells, classes) if keeps else (batch, base, pitch)
    image = batch * cells * pitch
    sizes = spaces(
        teacher.pooled_size, 0 if save_pooled else student.pooled_size, teacher.logits_size, student.logits_size,
        image, image, batch * cells, plan.rows_size, batch * plan.units, 0 if options.reduction == NONE else batch,
        image if plan.form.FINEST > 0 and gradient else 0,
    )  # fmt: skip
    return _Plan(
        student=student,
        teacher=teacher,
        gram=plan,
        keeps=keeps,
        saved_shape=saved_shape if save_gradient else (0,),
        pooled_shape=(batch, base, student_layouts[0][0][1]) if save_pooled else (0,),
        spaces=sizes,
        space=sum(sizes),
        classes=classes,
        launch=Launch(
            icd_loss_kernel,
            teacher.tasks + student.tasks + plan.tasks,
            registers=configs.registers(options.gram, classes, dtype),
            STUDENT=student.constants,
            TEACHER=teacher.constants,
            FORM=plan.form,
            SLOT=counter_slots.SLOT,
        ),
    )


def icd_loss(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator icd_loss (icd_kernels/operators.py): loss, and dl/dz (or logits) and pooled features to save."""
    tensors = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
    dtype, device = compute_dtype(*tensors), student_features.device
    options, rest = GramOptions(*numbers[:6]), numbers[6:]  # rest: both finest grids, save_gradient, save_pooled
    plan = plan_icd_loss(
        layouts(tensors[:3]), layouts(tensors[3:]), device, dtype, precision(dtype),
        class_sum_of(options.gram, student_weight.shape[0]), options.without_temperature(), *rest,
    )  # fmt: skip
    batch = student_features.shape[0]
    loss = student_features.new_empty((batch,) if options.reduction == NONE else (), dtype=dtype)
    saved, pooled = loss.new_empty(plan.saved_shape), loss.new_empty(plan.pooled_shape)
    if batch == 0:
        return (loss.fill_(loss_of_nothing(options)), saved, pooled)
    space = loss.new_empty(plan.space)
    nodes = loss.new_empty(plan.gram.nodes_size, dtype=torch.float64) if plan.gram.nodes_size else loss
    slot = counter_slots.counters_for(device)

    def arguments(*networks: Tensor | None) -> tuple[Any, ...]:
        return _arguments(plan, networks, space, nodes, loss, saved, pooled, slot.counters)

    plan.launch(
        device, arguments, tensors, (loss, saved, pooled, space, nodes, slot.table), slot.stream, (options.temperature,)
    )
    return loss, saved, pooled


def _arguments(
    plan: _Plan,
    networks: tuple[Any, ...],
    space: Tensor,
    nodes: Tensor,
    loss: Tensor,
    saved: Tensor,
    pooled: Tensor,
    counters: Counters,
) -> tuple[Any, ...]:
    """The kernel's arguments but the temperature."""
    teacher_pooled, student_pooled, teacher_logits, student_logits, *rest = space.split_with_sizes(plan.spaces)
    return (
        plan.student.arguments(*networks[:3], pooled if pooled.numel() else student_pooled, student_logits),
        plan.teacher.arguments(*networks[3:], teacher_pooled, teacher_logits),
        plan.student.logits(student_logits, counters.p_student_logits),
        plan.teacher.logits(teacher_logits, counters.p_teacher_logits),
        _work(plan, rest, nodes, loss, saved),
        counters,
        networks[0].shape[0],
        *plan.student.division,
        *plan.teacher.division,
        int(plan.gram.gradient),
    )


def _work(plan: _Plan, pieces: Sequence[Tensor], nodes: Tensor, loss: Tensor, saved: Tensor) -> Work:
    """What the Gram stage works on and writes; what it does not touch is some piece of the workspace."""
    z_student, z_teacher, divisor, rows, unit_loss, image_loss, all_cells = pieces
    gram, folds = plan.gram, plan.gram.form.FINEST > 0
    out = saved if gram.gradient else z_student
    return Work(
        p_student=z_student,
        p_teacher=z_teacher,
        p_student_raw=saved[0] if plan.keeps else None,
        p_teacher_raw=saved[1] if plan.keeps else None,
        p_divisor=divisor,
        p_rows=rows if gram.gradient else z_student,
        p_nodes=nodes if gram.nodes_size else None,
        p_unit_loss=unit_loss,
        p_image_loss=image_loss if loss.ndim == 0 else loss,
        p_loss=loss,
        p_gradient=all_cells if folds and gram.gradient else out,
        p_saved=out if folds else None,
        p_upstream=None,
        stride_upstream=0,
        classes=plan.classes,
        pitch=pitch_of(plan.classes),
    )
