"""icd_loss: from two feature maps to the loss and dl/dz in one launch."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.gram_stage import gram_task, reduce_losses
from icd_kernels.backends.triton.launch import launch
from icd_kernels.backends.triton.plan import gram_precision, plan_gram, plan_network, workspace
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
    dtype = compute_dtype(*tensors)
    batch, classes = student_features.shape[0], student_weight.shape[0]
    student = plan_network(student_features, student_weight, dtype, scales, pyramid)
    teacher = plan_network(teacher_features, teacher_weight, dtype, scales, pyramid)
    keeps = keeps_logits(gram, reduction) and save_gradient
    gradient = save_gradient and not keeps

    plan = plan_gram(
        batch, classes, dtype, tuple(scales), tuple(scale_weights), gram, normalize, reduction, gradient,
        student.finest if gradient else 0, gram_precision(dtype), student.logits_constants, teacher.logits_constants,
        configs.class_sum(classes), configs.double_cost(student_features.device),
    )  # fmt: skip
    cells, base, image = plan.form.CELLS, student.constants.CELLS, plan.form.CELLS * classes
    loss = student_features.new_empty((batch,) if reduction == "none" else (), dtype=dtype)
    saved_shape = (2, batch, cells, classes) if keeps else (batch, base, classes)
    saved = loss.new_empty(saved_shape if save_gradient else (0,))
    pooled = loss.new_empty((batch, base, student_features.shape[1]) if save_pooled else (0,))
    if batch == 0:
        return (loss.fill_(float("nan") if reduction == "mean" else 0.0), saved, pooled)

    folds = gradient and student.finest > 0
    teacher_pooled, student_pooled, teacher_logits, student_logits, z_student, z_teacher, *rest = workspace(
        loss, dtype, teacher.pooled_size, 0 if save_pooled else student.pooled_size, teacher.logits_size,
        student.logits_size, batch * image, batch * image, batch * cells, plan.rows_size, batch * plan.units,
        0 if reduction == "none" else batch, batch * image if folds else 0,
    )  # fmt: skip
    divisor, rows, unit_loss, image_loss, all_cells = rest
    work = Work(
        p_student=z_student,
        p_teacher=z_teacher,
        p_student_raw=saved[0] if keeps else None,
        p_teacher_raw=saved[1] if keeps else None,
        p_divisor=divisor,
        p_rows=rows if gradient else None,
        p_nodes=loss.new_empty(plan.nodes_size, dtype=torch.float64) if plan.nodes_size else None,
        p_unit_loss=unit_loss,
        p_image_loss=loss if reduction == "none" else image_loss,
        p_loss=loss,
        p_gradient=(all_cells if folds else saved) if gradient else None,
        p_saved=saved if folds else None,
        p_upstream=None,
        stride_upstream=0,
        group_images=plan.group_images,
        group_cells=plan.group_cells,
    )
    student_pooled = pooled if save_pooled else student_pooled
    slots = counter_slots.counters_for(loss.device)
    launch(
        icd_loss_kernel,
        teacher.pool_tasks + student.pool_tasks + teacher.project_tasks + student.project_tasks + plan.tasks,
        loss.device,
        student.arguments(student_features, student_weight, student_bias, student_pooled, student_logits),
        teacher.arguments(teacher_features, teacher_weight, teacher_bias, teacher_pooled, teacher_logits),
        student.logits(student_logits, slots.p_student_logits, batch, classes),
        teacher.logits(teacher_logits, slots.p_teacher_logits, batch, classes),
        work,
        slots,
        batch,
        classes,
        temperature,
        registers=configs.registers(gram, classes),
        STUDENT=student.constants,
        TEACHER=teacher.constants,
        FORM=plan.form,
        SLOT=counter_slots.SLOT,
    )
    return loss, saved, pooled
