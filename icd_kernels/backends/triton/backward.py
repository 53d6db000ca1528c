"""From dl/dz to the gradients by features, weight and bias, in one launch."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.cell_gradient import cell_task
from icd_kernels.backends.triton.gram_kl import backward_of_rows
from icd_kernels.backends.triton.gram_stage import fold_gradient
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import (
    LANGUAGE_DTYPES,
    Layout,
    ceil_div,
    firsts,
    group_rows,
    layout,
    parts,
    precision,
    spaces,
    workspace,
)
from icd_kernels.backends.triton.scattering import scatter_task
from icd_kernels.backends.triton.structs import Backward, NetworkConstants
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.backends.triton.weight_gradient import weight_task
from icd_kernels.geometry import base_scales, cell_count, is_folded
from icd_kernels.operators import keeps_logits


@triton.jit
def backward_kernel(job, counters, CONSTANTS: tl.constexpr, SLOT: tl.constexpr):
    """Tasks in order: gradient by pooled features, by weight and bias, and the former scattered to the pixels."""
    task = draw_task(counters)
    weight = task - job.cell_tasks
    scatter = weight - job.weight_tasks
    if weight < 0:
        cell_task(task, job, counters, CONSTANTS)
    elif scatter < 0:
        weight_task(weight, job, counters, CONSTANTS)
    else:
        if job.p_features is not None:
            scatter_task(scatter, job, counters, CONSTANTS)
    if weight >= 0:
        if is_last_task(counters, job.cell_tasks):
            reset(counters, SLOT)


@triton.jit
def fold_kernel(
    p_gradient, stride_image, stride_cell, stride_class, p_folded, classes, ACC: tl.constexpr, SCALES: tl.constexpr,
    FIRSTS: tl.constexpr, FINEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folds gradients by every cell's logits onto the finest grid, an image for each program."""
    fold_gradient(
        p_gradient, stride_image, stride_cell, stride_class, p_folded, tl.program_id(0), classes, ACC, SCALES, FIRSTS,
        FINEST, ROWS, BLOCK,
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
    scales: Sequence[int],
    scale_weights: Sequence[float],
    gram: str,
    pyramid: str,
    normalize: str,
    temperature: float,
    reduction: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator icd_loss_backward (icd_kernels/operators.py)."""
    batch, _, height, width = size
    upstream: Tensor | None = grad_loss
    if keeps_logits(gram, reduction) and batch > 0:
        finest = max(scales) if is_folded(scales, pyramid, height, width) else 0
        cells = cell_count(base_scales(scales, pyramid, height, width))
        gradient = saved.new_empty((batch, cells, weight.shape[0]))
        backward_of_rows(grad_loss, saved, gradient, finest, scales, scale_weights, normalize, temperature)
        saved, upstream = gradient, None
    return _gradients(saved, upstream, pooled, weight, size, stride, dtype, bias_dtype, scales, pyramid, wanted)


def region_logits_backward(
    grad_logits: Tensor,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    scales: Sequence[int],
    pyramid: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator region_logits_backward (icd_kernels/operators.py)."""
    batch, _, height, width = size
    gradient = grad_logits.transpose(1, 2)  # [B, N, K]
    if is_folded(scales, pyramid, height, width) and batch > 0:
        folded = gradient.new_empty((batch, max(scales) ** 2, gradient.shape[2]))
        launch = _fold_launch(layout(gradient), tuple(scales))
        launch(gradient.device, gradient, *gradient.stride(), folded, gradient.shape[2], given=(gradient,))
        gradient = folded
    return _gradients(gradient, None, pooled, weight, size, stride, dtype, bias_dtype, scales, pyramid, wanted)


@lru_cache(maxsize=1024)
def _fold_launch(gradient: Layout, scales: tuple[int, ...]) -> Launch:
    return Launch(
        fold_kernel, gradient.shape[0], ACC=LANGUAGE_DTYPES[gradient.dtype], SCALES=scales, FIRSTS=firsts(scales),
        FINEST=max(scales), ROWS=configs.PAIR_BLOCK, BLOCK=configs.PAIR_DEPTH,
    )  # fmt: skip


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
    pyramid: str,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features, weight and bias from dl/dz (B, base cells, K) of any strides; empty where not wanted."""
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
        layout(gradient), layout(upstream), layout(weight), Layout(tuple(size), tuple(stride), dtype), bias_dtype,
        tuple(scales), pyramid, tuple(wanted), precision(gradient.dtype),
    )  # fmt: skip
    is_shared = upstream is not None and upstream.ndim == 0
    cells_space, partial = workspace(gradient, gradient.dtype, plan.spaces)
    job = Backward(
        gradient,
        None if is_shared else upstream,
        upstream if is_shared else None,
        pooled if by_weight else None,
        weight,
        cells_space,
        outputs[0] if by_features else None,
        partial,
        outputs[1] if by_weight else None,
        outputs[2] if by_bias else None,
        *plan.numbers,
    )
    plan.launch(
        weight.device, job, counter_slots.counters_for(weight.device), given=(gradient, upstream, pooled, weight)
    )
    return outputs


class _Plan(NamedTuple):
    """All that a call needs but tensors."""

    numbers: tuple[int, ...]
    """Those of `Backward`, in its order."""
    spaces: tuple[int, ...]
    launch: Launch


@lru_cache(maxsize=1024)
def plan_backward(
    gradient: Layout,
    upstream: Layout | None,
    weight: Layout,
    features: Layout,
    bias_dtype: torch.dtype,
    scales: tuple[int, ...],
    pyramid: str,
    wanted: tuple[bool, bool, bool],
    products: str,
) -> _Plan:
    """`features`, `bias_dtype`: of the gradients to write."""
    by_features, by_weight, by_bias = wanted
    classes, channels = weight.shape
    batch = features.shape[0]
    constants = backward_constants(gradient, features, scales, pyramid, products)
    blocks = ceil_div(channels, constants.CLASS_BLOCK)
    cell_tasks = ceil_div(batch, constants.GROUP_IMAGES) * constants.GROUP_TILES * blocks if by_features else 0
    tiles = ceil_div(classes, constants.ROW_BLOCK) * (blocks if by_weight else 1) if by_weight or by_bias else 0
    splits = configs.splits(tiles, batch * constants.CELLS, constants.DEPTH_BLOCK)
    scatter_tasks = batch * ceil_div(channels, constants.CHANNEL_BLOCK) if by_features else 0
    stride_upstream = 0 if upstream is None or not upstream.shape else upstream.stride[0]
    return _Plan(
        numbers=(
            *(*gradient.stride, stride_upstream, *weight.stride, *features.stride),
            *(batch, classes, channels, cell_tasks, tiles * splits),
        ),
        spaces=spaces(
            batch * constants.CELLS * channels if by_features else 0,
            0 if splits == 1 else splits * classes * (channels * by_weight + 1),
        ),
        launch=Launch(
            backward_kernel,
            cell_tasks + tiles * splits + scatter_tasks,
            CONSTANTS=constants._replace(SPLITS=splits),
            SLOT=counter_slots.SLOT,
        ),
    )


def backward_constants(
    gradient: Layout, features: Layout, scales: tuple[int, ...], pyramid: str, products: str
) -> NetworkConstants:
    """What the kernel is compiled for, but for the parts of the weight's gradient."""
    _, channels, height, width = features.shape
    base = base_scales(scales, pyramid, height, width)
    cells = cell_count(base)
    row_block, class_block, depth_block = configs.product_blocks(gradient.dtype, products)
    group_images, group_tiles = group_rows(features.shape[0], cells, row_block)
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
        GROUP_IMAGES=group_images,
        GROUP_TILES=group_tiles,
        BAND=1,
        SPLITS=1,
        PRECISION=products,
        PARTS=parts(LANGUAGE_DTYPES[gradient.dtype]),
        CELL_BLOCK=configs.cell_block(cells),
        PIXEL_BLOCK=configs.pixel_block(height * width, gradient.dtype),
        CHANNEL_BLOCK=configs.channel_block(channels, cells, 8 * features.dtype.itemsize),
        ROW_BLOCK=row_block,
        CLASS_BLOCK=class_block,
        DEPTH_BLOCK=depth_block,
    )
