"""From dl/dz to the gradients by features, weight and bias, in one launch."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.cell_gradient import cell_task, cell_tasks
from icd_kernels.backends.triton.fold import fold_gradient
from icd_kernels.backends.triton.gram_kl import backward_of_rows
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import (
    LANGUAGE_DTYPES,
    Layout,
    Layouts,
    ceil_div,
    firsts,
    group_rows,
    layout,
    layouts,
    parts,
    pitch_of,
    precision,
    spaces,
)
from icd_kernels.backends.triton.scattering import scatter_task
from icd_kernels.backends.triton.structs import Backward, NetworkConstants
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.backends.triton.weight_gradient import weight_task, weight_tasks
from icd_kernels.geometry import base_scales, cell_count
from icd_kernels.problem import GramOptions


@triton.jit(do_not_specialize=["batch", "group_images", "splits"])
def backward_kernel(job, counters, batch, group_images, splits, CONSTANTS: tl.constexpr, SLOT: tl.constexpr):
    """Tasks in order: gradient by pooled features, by weight and bias, and the former scattered to the pixels."""
    cells = tl.full((), 0, tl.int32)
    if job.p_features is not None:
        cells = tl.cdiv(batch, group_images) * cell_tasks(job, group_images, CONSTANTS)
    task = draw_task(counters)
    weight = task - cells
    scatter = weight - weight_tasks(job, splits, CONSTANTS)
    if weight < 0:
        cell_task(task, job, counters, batch, group_images, CONSTANTS)
    elif scatter < 0:
        weight_task(weight, job, counters, batch, splits, CONSTANTS)
    else:
        if job.p_features is not None:
            scatter_task(scatter, job, counters, group_images, CONSTANTS)
    if weight >= 0:
        if is_last_task(counters, cells):
            reset(counters, SLOT)


@triton.jit
def fold_kernel(
    p_gradient, stride_image, stride_cell, stride_class, p_folded, classes, pitch, ACC: tl.constexpr,
    SCALES: tl.constexpr, FIRSTS: tl.constexpr, FINEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folds gradients by every cell's logits onto the finest grid, an image for each program."""
    fold_gradient(
        p_gradient, stride_image, stride_cell, stride_class, p_folded, tl.program_id(0), classes, pitch, ACC, SCALES,
        FIRSTS, FINEST, ROWS, BLOCK,
    )  # fmt: skip


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
    batch, base = size[0], base_scales(options.scales, finest)
    upstream: Tensor | None = grad_loss
    if options.keeps_logits and batch > 0:
        classes = weight.shape[0]
        gradient = saved.new_empty((batch, cell_count(base), pitch_of(classes) if finest else classes))
        backward_of_rows(grad_loss, saved, gradient, finest, options)
        saved, upstream = gradient, None
    return _gradients(saved, upstream, pooled, weight, size, stride, dtype, bias_dtype, base, wanted)


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
    batch, base = size[0], base_scales(scales, finest)
    gradient = grad_logits.transpose(1, 2)  # [B, N, K]
    if finest and batch > 0:
        folded = gradient.new_empty((batch, finest * finest, pitch_of(gradient.shape[2])))
        launch = _fold_launch(layout(gradient), tuple(scales), finest)
        launch(gradient.device, partial(_fold_arguments, folded), (gradient,), (folded,))
        gradient = folded
    return _gradients(gradient, None, pooled, weight, size, stride, dtype, bias_dtype, base, wanted)


def _fold_arguments(folded: Tensor, gradient: Tensor) -> tuple[Any, ...]:
    return gradient, *gradient.stride(), folded, gradient.shape[2], folded.shape[2]


@lru_cache(maxsize=1024)
def _fold_launch(gradient: Layout, scales: tuple[int, ...], finest: int) -> Launch:
    return Launch(
        fold_kernel, gradient.shape[0], ACC=LANGUAGE_DTYPES[gradient.dtype], SCALES=scales, FIRSTS=firsts(scales),
        FINEST=finest, ROWS=configs.PAIR_BLOCK, BLOCK=configs.PAIR_DEPTH,
    )  # fmt: skip


class _Plan(NamedTuple):
    """All that a call needs but tensors."""

    numbers: tuple[int, ...]
    """Those of `Backward`, in its order."""
    division: tuple[int, int]
    """Images whose cells are rows of one product, and parts that the weight's gradient is summed in."""
    spaces: tuple[int, ...]
    launch: Launch


def _gradients(
    gradient: Tensor,
    upstream: Tensor | None,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    base: Sequence[int],
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
        layouts((gradient, upstream, weight)), (tuple(size), tuple(stride), dtype), bias_dtype, tuple(base),
        tuple(wanted), precision(gradient.dtype),
    )  # fmt: skip
    space = gradient.new_empty(sum(plan.spaces))
    slot = counter_slots.counters_for(weight.device)

    def arguments(*given: Any) -> tuple[Any, ...]:
        return _job(plan, wanted, given, space, outputs), slot.counters, size[0], *plan.division

    allocated = (*outputs, space, slot.table)
    plan.launch(weight.device, arguments, (gradient, upstream, pooled, weight), allocated, slot.stream)
    return outputs


def _job(
    plan: _Plan, wanted: Sequence[bool], given: tuple[Any, ...], space: Tensor, outputs: tuple[Tensor, ...]
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


@lru_cache(maxsize=1024)
def plan_backward(
    tensors: Layouts,
    outputs: Any,
    bias_dtype: torch.dtype,
    base: tuple[int, ...],
    wanted: tuple[bool, bool, bool],
    products: str,
) -> _Plan:
    """`tensors`: dl/dz, the upstream gradient and the weight; `outputs`, `bias_dtype`: of the gradients to write."""
    gradient, weight, features = Layout(*tensors[0]), Layout(*tensors[2]), Layout(*outputs)
    upstream = None if tensors[1] is None else Layout(*tensors[1])
    by_features, by_weight, by_bias = wanted
    classes, channels = weight.shape
    batch = features.shape[0]
    constants = backward_constants(gradient, features, base, products)
    group_images = group_rows(batch, constants.CELLS, constants.ROW_BLOCK)
    group_tiles = ceil_div(group_images * constants.CELLS, constants.ROW_BLOCK)
    blocks = ceil_div(channels, constants.CLASS_BLOCK)
    cells = ceil_div(batch, group_images) * group_tiles * blocks if by_features else 0
    tiles = ceil_div(classes, constants.ROW_BLOCK) * (blocks if by_weight else 1) if by_weight or by_bias else 0
    rows = batch * constants.CELLS
    splits = configs.splits(tiles, rows, constants.DEPTH_BLOCK, configs.WEIGHT_SPREAD)
    scatter = batch * ceil_div(channels, constants.CHANNEL_BLOCK) if by_features else 0
    stride_upstream = 0 if upstream is None or not upstream.shape else upstream.stride[0]
    return _Plan(
        numbers=(
            *(*gradient.stride, stride_upstream, *weight.stride, *features.stride),
            *(classes, channels, gradient.shape[2]),
        ),
        division=(group_images, splits),
        spaces=spaces(
            batch * constants.CELLS * channels if by_features else 0,
            0 if splits == 1 else splits * classes * (channels * by_weight + 1),
        ),
        launch=Launch(
            backward_kernel,
            cells + tiles * splits + scatter,
            registers=configs.backward_registers(gradient.dtype),
            CONSTANTS=constants,
            SLOT=counter_slots.SLOT,
        ),
    )


def backward_constants(gradient: Layout, features: Layout, base: tuple[int, ...], products: str) -> NetworkConstants:
    """What the kernel is compiled for."""
    _, channels, height, width = features.shape
    cells = cell_count(base)
    row_block, class_block, depth_block = configs.backward_blocks(gradient.dtype, products)
    return NetworkConstants(
        ACC=LANGUAGE_DTYPES[gradient.dtype],
        POOL=LANGUAGE_DTYPES[gradient.dtype],
        SCALES=base,
        FIRSTS=firsts(base),
        CELLS=cells,
        HEIGHT=height,
        WIDTH=width,
        ALIGN=math.gcd(features.stride[1], 16),
        FLAT=height == 1 or features.stride[2] == width * features.stride[3],
        ROWS_APART=gradient.stride[0] != cells * gradient.stride[1],
        BAND=1,
        PRECISION=products,
        PARTS=parts(LANGUAGE_DTYPES[gradient.dtype]),
        CELL_BLOCK=configs.cell_block(cells),
        PIXEL_BLOCK=configs.pixel_block(height * width, gradient.dtype),
        CHANNEL_BLOCK=configs.channel_block(channels, cells, 8 * features.dtype.itemsize),
        ROW_BLOCK=row_block,
        CLASS_BLOCK=class_block,
        DEPTH_BLOCK=depth_block,
    )
