"""icd_loss: from two feature maps to the loss and dl/dz, in one launch unless configs.LAUNCHES says otherwise."""

from typing import Any

import torch
from torch import Tensor

from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.plan import ICDLossPlan, plan_icd_loss
from icd_kernels.backends.triton.plan_parts import class_sum_of, layouts, loss_of_nothing, pitch_of
from icd_kernels.backends.triton.structs import Counters
from icd_kernels.backends.triton.work import work_of
from icd_kernels.problem import GramOptions


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
    options, rest = GramOptions(*numbers[:6]), numbers[6:]  # rest: both finest grids, save_gradient, save_pooled
    device = student_features.device
    plan = plan_icd_loss(
        layouts(tensors), device, torch.get_float32_matmul_precision(),
        class_sum_of(options.gram, student_weight.shape[0]), options.without_temperature(), *rest,
    )  # fmt: skip
    loss = student_features.new_empty(plan.loss_shape, dtype=plan.dtype)
    saved, pooled = loss.new_empty(plan.saved_shape), loss.new_empty(plan.pooled_shape)
    batch = student_features.shape[0]
    if batch == 0:
        return (loss.fill_(loss_of_nothing(options)), saved, pooled)
    space = loss.new_empty(plan.space)
    nodes = loss.new_empty(plan.gram.nodes_size, dtype=torch.float64) if plan.gram.nodes_size else loss
    slot = counter_slots.counters_for(device)

    def arguments(*networks: Tensor | None) -> tuple[Any, ...]:
        return _arguments(plan, networks, space, nodes, loss, saved, pooled, slot.counters)

    allocated = (loss, saved, pooled, space, nodes, slot.table)
    for launch in plan.launches:
        launch(device, arguments, tensors, allocated, slot.stream, (options.temperature,))
    return loss, saved, pooled


def _arguments(
    plan: ICDLossPlan,
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
        work_of(
            plan.gram,
            rest,
            nodes,
            loss,
            saved if plan.gram.gradient else None,
            saved if plan.keeps else None,
            None,
            plan.classes,
            pitch_of(plan.classes),
        ),
        counters,
        networks[0].shape[0],
        *plan.student.division,
        *plan.teacher.division,
        int(plan.gram.gradient),
    )
