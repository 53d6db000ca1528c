"""region_logits: local logits of every cell in one launch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.plan import plan_region_logits
from icd_kernels.backends.triton.plan_parts import layouts


def region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int], finest: int, save_pooled: bool
) -> tuple[Tensor, Tensor]:
    """The operator region_logits (icd_kernels/operators.py)."""
    tensors = (features, weight, bias)
    batch, classes = features.shape[0], weight.shape[0]
    setting = torch.get_float32_matmul_precision()
    plan = plan_region_logits(layouts(tensors), features.device, setting, tuple(scales), finest, save_pooled)
    network = plan.network
    logits = features.new_empty((batch, plan.cells, classes), dtype=plan.dtype)
    pooled = logits.new_empty((batch, network.constants.CELLS, features.shape[1]) if save_pooled else (0,))
    if batch == 0:
        return logits.transpose(1, 2), pooled
    space = logits.new_empty(sum(plan.spaces))
    slot = counter_slots.counters_for(logits.device)

    def arguments(*tensors: Any) -> tuple[Any, ...]:
        pooled_space, partial = space.split_with_sizes(plan.spaces)
        projected = logits if plan.is_direct else partial
        return (
            network.arguments(*tensors, pooled if save_pooled else pooled_space, projected),
            network.logits(projected, slot.counters.p_student_logits),
            logits,
            slot.counters,
            batch,
            *network.division,
        )

    plan.launch(logits.device, arguments, tensors, (logits, pooled, space, slot.table), slot.stream)
    return logits.transpose(1, 2), pooled
