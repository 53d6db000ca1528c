"""From dl/dz to the gradients by features, weight and bias, in one launch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.gram_kl import backward_of_rows
from icd_kernels.backends.triton.plan import BackwardPlan, plan_backward, plan_fold
from icd_kernels.backends.triton.plan_parts import layout, layouts, pitch_of
from icd_kernels.backends.triton.structs import Backward
from icd_kernels.geometry import base_scales, cell_count
from icd_kernels.problem import GramOptions


def icd_loss_backward(
    grad_loss: Tensor,
    saved: Tensor,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator icd_loss_backward (icd_kernels/operators.py)."""
    options, (finest, wanted) = GramOptions(*numbers[:-2]), numbers[-2:]
    upstream: Tensor | None = grad_loss
    if options.keeps_logits and size[0] > 0:
        cells = cell_count(base_scales(options.scales, finest))
        gradient = saved.new_empty((size[0], cells, pitch_of(weight.shape[0])))
        backward_of_rows(grad_loss, saved, gradient, finest, options)
        saved, upstream = gradient, None
    return _gradients(
        saved, upstream, pooled, weight, size, stride, dtype, bias_dtype, options.scales, finest, wanted
    )  # fmt: skip


def region_logits_backward(
    grad_logits: Tensor,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    scales: Sequence[int],
    finest: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator region_logits_backward (icd_kernels/operators.py)."""
    batch = size[0]
    gradient = grad_logits.transpose(1, 2)  # [B, N, K]
    if finest and batch > 0:
        folded = gradient.new_empty((batch, finest * finest, pitch_of(gradient.shape[2])))
        launch = plan_fold(layout(gradient), tuple(scales), finest)
        launch(gradient.device, partial(_fold_arguments, folded), (gradient,), (folded,))
        gradient = folded
    return _gradients(gradient, None, pooled, weight, size, stride, dtype, bias_dtype, scales, finest, wanted)


def _fold_arguments(folded: Tensor, gradient: Tensor) -> tuple[Any, ...]:
    return gradient, *gradient.stride(), folded, gradient.shape[2], folded.shape[2]


def _gradients(
    gradient: Tensor,
    upstream: Tensor | None,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    scales: Sequence[int],
    finest: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features, weight and bias from dl/dz (B, base cells, K, or its pitch with zeros behind) of any
    strides; empty where not wanted."""
    by_features, by_weight, by_bias = wanted
    outputs = (
        torch.empty_strided(
            size if by_features else (0,), stride if by_features else (1,), dtype=dtype, device=weight.device
        ),
        weight.new_empty(weight.shape if by_weight else (0,)),
        weight.new_empty(weight.shape[0] if by_bias else 0, dtype=bias_dtype),
    )
    if size[0] == 0:
        return outputs[0], outputs[1].zero_(), outputs[2].zero_()
    plan = plan_backward(
        layouts((gradient, upstream, weight)), (tuple(size), tuple(stride), dtype), bias_dtype, tuple(scales), finest,
        tuple(wanted), weight.device, torch.get_float32_matmul_precision(),
    )  # fmt: skip
    space = gradient.new_empty(sum(plan.spaces))
    slot = counter_slots.counters_for(weight.device)

    def arguments(*given: Any) -> tuple[Any, ...]:
        return _job(plan, wanted, given, space, outputs), slot.counters, size[0], *plan.division

    allocated = (*outputs, space, slot.table)
    plan.launch(weight.device, arguments, (gradient, upstream, pooled, weight), allocated, slot.stream)
    return outputs


def _job(
    plan: BackwardPlan, wanted: Sequence[bool], given: tuple[Any, ...], space: Tensor, outputs: tuple[Tensor, ...]
) -> Backward:
    """What the kernel reads and writes."""
    gradient, upstream, pooled, weight = given
    by_features, by_weight, by_bias = wanted
    is_shared = upstream is not None and upstream.ndim == 0
    cells_space, partial_space = space.split_with_sizes(plan.spaces)
    return Backward(
        gradient,
        None if is_shared else upstream,
        upstream if is_shared else None,
        pooled if by_weight else None,
        weight,
        cells_space,
        outputs[0] if by_features else None,
        partial_space,
        outputs[1] if by_weight else None,
        outputs[2] if by_bias else None,
        *plan.numbers,
    )
