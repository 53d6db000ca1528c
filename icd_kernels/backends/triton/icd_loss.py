"""icd_loss: from two feature maps to the loss and dl/dz in one launch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

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
    Layout,
    NetworkPlan,
    gram_precision,
    layout,
    plan_gram,
    plan_network,
    precision,
    spaces,
    workspace,
)
from icd_kernels.backends.triton.pooling import pool_task
from icd_kernels.backends.triton.projection import project_task
from icd_kernels.backends.triton.structs import Work
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.checks import compute_dtype
from icd_kernels.operators import keeps_logits


@triton.jit
def icd_loss_kernel(
    student,
    teacher,
    student_logits,
    teacher_logits,
    work,
    counters,
    batch,
    classes,
    temperature: tl.float64,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """Tasks in order: pool teacher, pool student, project teacher, project student, Gram stage."""
    task = draw_task(counters)
    student_pool = task - teacher.pool_tasks
    teacher_project = student_pool - student.pool_tasks
    student_project = teacher_project - teacher.project_tasks
    gram = student_project - student.project_tasks
    if student_pool < 0:
        pool_task(task, teacher, counters.p_teacher_pooled, TEACHER)
    elif teacher_project < 0:
        pool_task(student_pool, student, counters.p_student_pooled, STUDENT)
    elif student_project < 0:
        project_task(
            teacher_project, teacher, counters.p_teacher_pooled, counters.p_teacher_logits, batch, classes, TEACHER
        )
    elif gram < 0:
        project_task(
            student_project, student, counters.p_student_pooled, counters.p_student_logits, batch, classes, STUDENT
        )
    else:
        gram_task(gram, student_logits, teacher_logits, work, counters, batch, classes, temperature, FORM)
        if is_last_task(counters, task - gram):
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
    launch: Launch


@lru_cache(maxsize=1024)
def plan_icd_loss(
    student_features: Layout,
    student_weight: Layout,
    student_bias: Layout | None,
    teacher_features: Layout,
    teacher_weight: Layout,
    teacher_bias: Layout | None,
    device: torch.device,
    dtype: torch.dtype,
    products: str,
    class_sum: str,
    scales: tuple[int, ...],
    scale_weights: tuple[float, ...],
    gram: str,
    pyramid: str,
    normalize: str,
    reduction: str,
    save_gradient: bool,
    save_pooled: bool,
) -> _Plan:
    batch, classes = student_features.shape[0], student_weight.shape[0]
    student = plan_network(student_features, student_weight, student_bias, dtype, products, scales, pyramid)
    teacher = plan_network(teacher_features, teacher_weight, teacher_bias, dtype, products, scales, pyramid)
    keeps = keeps_logits(gram, reduction) and save_gradient
    gradient = save_gradient and not keeps
    plan = plan_gram(
        batch, classes, dtype, scales, scale_weights, gram, normalize, reduction, gradient,
        student.finest if gradient else 0, gram_precision(products), student.logits_constants,
        teacher.logits_constants, class_sum, configs.double_cost(device),
    )  # fmt: skip
    cells, base = plan.form.CELLS, student.constants.CELLS
    saved_shape = (2, batch, cells, classes) if keeps else (batch, base, classes)
    image = batch * cells * classes
    sizes = spaces(
        teacher.pooled_size, 0 if save_pooled else student.pooled_size, teacher.logits_size, student.logits_size,
        image, image, batch * cells, plan.rows_size, batch * plan.units, 0 if reduction == "none" else batch,
        image if plan.form.FINEST > 0 else 0,
    )  # fmt: skip
    return _Plan(
        student=student,
        teacher=teacher,
        gram=plan,
        keeps=keeps,
        saved_shape=saved_shape if save_gradient else (0,),
        pooled_shape=(batch, base, student_features.shape[1]) if save_pooled else (0,),
        spaces=sizes,
        launch=Launch(
            icd_loss_kernel,
            teacher.pool_tasks + student.pool_tasks + teacher.project_tasks + student.project_tasks + plan.tasks,
            registers=configs.registers(gram, classes, dtype),
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
    scales: Sequence[int],
    scale_weights: Sequence[float],
    gram: str,
    pyramid: str,
    normalize: str,
    temperature: float,
    reduction: str,
    save_gradient: bool,
    save_pooled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator icd_loss (icd_kernels/operators.py): loss, and dl/dz (or logits) and pooled features to save."""
    tensors = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
    dtype, device = compute_dtype(*tensors), student_features.device
    batch, classes = student_features.shape[0], student_weight.shape[0]
    plan = plan_icd_loss(
        *map(layout, tensors), device, dtype, precision(dtype), configs.class_sum(classes), tuple(scales),
        tuple(scale_weights), gram, pyramid, normalize, reduction, save_gradient, save_pooled,
    )  # fmt: skip
    loss = student_features.new_empty((batch,) if reduction == "none" else (), dtype=dtype)
    saved, pooled = loss.new_empty(plan.saved_shape), loss.new_empty(plan.pooled_shape)
    if batch == 0:
        return (loss.fill_(float("nan") if reduction == "mean" else 0.0), saved, pooled)
    teacher_pooled, student_pooled, teacher_logits, student_logits, *rest = workspace(loss, dtype, plan.spaces)
    slots = counter_slots.counters_for(device)
    plan.launch(
        device,
        plan.student.arguments(*tensors[:3], pooled if save_pooled else student_pooled, student_logits),
        plan.teacher.arguments(*tensors[3:], teacher_pooled, teacher_logits),
        plan.student.logits(student_logits, slots.p_student_logits),
        plan.teacher.logits(teacher_logits, slots.p_teacher_logits),
        _work(plan, rest, loss, saved),
        slots,
        batch,
        classes,
        temperature,
        given=tensors,
    )
    return loss, saved, pooled


def _work(plan: _Plan, pieces: Sequence[Tensor], loss: Tensor, saved: Tensor) -> Work:
    """What the Gram stage works on and writes."""
    z_student, z_teacher, divisor, rows, unit_loss, image_loss, all_cells = pieces
    gram, folds = plan.gram, plan.gram.form.FINEST > 0
    gradient = all_cells if folds else saved
    return Work(
        p_student=z_student,
        p_teacher=z_teacher,
        p_student_raw=saved[0] if plan.keeps else None,
        p_teacher_raw=saved[1] if plan.keeps else None,
        p_divisor=divisor,
        p_rows=rows if gram.form.GRADIENT else None,
        p_nodes=loss.new_empty(gram.nodes_size, dtype=torch.float64) if gram.nodes_size else None,
        p_unit_loss=unit_loss,
        p_image_loss=image_loss if loss.ndim == 0 else loss,
        p_loss=loss,
        p_gradient=gradient if gram.form.GRADIENT else None,
        p_saved=saved if folds else None,
        p_upstream=None,
        stride_upstream=0,
        group_images=gram.group_images,
        group_cells=gram.group_cells,
    )
