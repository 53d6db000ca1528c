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
from icd_kernels.backends.triton.cells import add_covered, cell_windows, channel_offsets, covers, pixel_offsets, store
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
from icd_kernels.backends.triton.structs import Backward, NetworkConstants
from icd_kernels.backends.triton.tasks import arrive, draw_task, is_last_task, reset, wait_for
from icd_kernels.geometry import base_scales, cell_count, is_folded
from icd_kernels.operators import keeps_logits


@triton.jit
def backward_kernel(job, counters, CONSTANTS: tl.constexpr, SLOT: tl.constexpr):
    """Tasks in order: gradient by pooled features, by weight and bias, and the former scattered to the pixels."""
    task = draw_task(counters)
    weight = task - job.cell_tasks
    scatter = weight - job.weight_tasks
    if weight < 0:
        _cell_task(task, job, counters, CONSTANTS)
    elif scatter < 0:
        _weight_task(weight, job, counters, CONSTANTS)
    else:
        if job.p_features is not None:
            _scatter_task(scatter, job, counters, CONSTANTS)
    if weight >= 0:
        if is_last_task(counters, job.cell_tasks):
            reset(counters, SLOT)


@triton.jit
def _cell_task(task, job, counters, CONSTANTS: tl.constexpr):
    """A tile of dl/df̄ = dl/dz W over the cell's size: rows of one group of images, a block of channels."""
    channel_blocks = tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)
    o_channels = (task % channel_blocks) * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    row_tile = task // channel_blocks % CONSTANTS.GROUP_TILES
    group = task // channel_blocks // CONSTANTS.GROUP_TILES
    images = tl.minimum(CONSTANTS.GROUP_IMAGES, job.batch - group * CONSTANTS.GROUP_IMAGES)
    o_local = row_tile * CONSTANTS.ROW_BLOCK + tl.arange(0, CONSTANTS.ROW_BLOCK)
    m_rows = o_local < images * CONSTANTS.CELLS
    o_rows = group.to(tl.int64) * CONSTANTS.GROUP_IMAGES * CONSTANTS.CELLS + o_local

    total = _cell_product(o_rows, m_rows, o_channels, job, CONSTANTS)
    top, bottom, left, right = cell_windows(
        o_local % CONSTANTS.CELLS, CONSTANTS.HEIGHT, CONSTANTS.WIDTH, CONSTANTS.SCALES, CONSTANTS.FIRSTS
    )
    size = tl.maximum((bottom - top) * (right - left), 1).to(CONSTANTS.ACC)
    total = total * (_load_scale(job, CONSTANTS) / size)[:, None]
    o_out = o_rows[:, None] * job.channels + o_channels[None, :]
    tl.store(job.p_cells + o_out, total, mask=m_rows[:, None] & (o_channels < job.channels)[None, :])
    arrive(counters.p_student_pooled + group)


@triton.jit
def _cell_product(o_rows, m_rows, o_channels, job, CONSTANTS: tl.constexpr):
    """dl/dz W of rows (image, cell) and a block of channels, [ROWS, CHANNELS]."""
    total = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    o_classes = tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    p_gradient = _gradient_rows(job, o_rows, CONSTANTS)[:, None] + o_classes.to(tl.int64)[None, :] * job.stride_class
    p_weight = job.p_weight + o_classes.to(tl.int64)[:, None] * job.weight_stride_class
    p_weight += o_channels.to(tl.int64)[None, :] * job.weight_stride_depth
    m_channels = o_channels < job.channels
    upstream = _load_upstream(job, o_rows, m_rows, CONSTANTS)
    block = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64)
    for start in range(0, job.classes, CONSTANTS.DEPTH_BLOCK):
        m_classes = o_classes < job.classes - start
        b_gradient = tl.load(p_gradient, mask=m_rows[:, None] & m_classes[None, :], other=0.0).to(CONSTANTS.ACC)
        b_weight = tl.load(p_weight, mask=m_classes[:, None] & m_channels[None, :], other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * upstream[:, None]
        total = tl.dot(b_gradient, b_weight, total, input_precision=CONSTANTS.PRECISION, out_dtype=CONSTANTS.ACC)
        p_gradient += block * job.stride_class
        p_weight += block * job.weight_stride_class
    return total


@triton.jit
def _weight_task(task, job, counters, CONSTANTS: tl.constexpr):
    """A tile of dl/dW = Σ dl/dz f̄^T over all images' cells; the first block of channels also does dl/db = Σ dl/dz.

    Blocks of channels vary fastest: for many classes dl/dz is the larger operand, and is read by all of them together.
    Where the images are split, the last part to arrive adds up all parts in order.
    """
    split = task % CONSTANTS.SPLITS
    tile = task // CONSTANTS.SPLITS
    channel_blocks = 1
    if job.p_weight_gradient is not None:
        channel_blocks = tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)
    channel_block = tile % channel_blocks
    o_classes = (tile // channel_blocks) * CONSTANTS.ROW_BLOCK + tl.arange(0, CONSTANTS.ROW_BLOCK)
    o_channels = channel_block * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    total, bias = _weight_product(split, o_classes, o_channels, job, CONSTANTS)
    m_tile = (o_classes < job.classes)[:, None] & (o_channels < job.channels)[None, :]
    m_bias = o_classes < tl.where(channel_block == 0, job.classes, 0)
    if CONSTANTS.SPLITS > 1:
        wide = tl.full((), 0, tl.int64) + job.classes
        p_tile = job.p_partial + o_classes.to(tl.int64)[:, None] * job.channels + o_channels[None, :]
        p_bias = job.p_partial + o_classes
        if job.p_weight_gradient is not None:
            p_bias += CONSTANTS.SPLITS * wide * job.channels
            tl.store(p_tile + split * wide * job.channels, total, mask=m_tile)
        tl.store(p_bias + split * wide, bias, mask=m_bias)
        is_whole = arrive(counters.p_images + tile) == CONSTANTS.SPLITS - 1
        tl.debug_barrier()
        if is_whole:
            total = total * 0
            bias = bias * 0
            for part in tl.static_range(CONSTANTS.SPLITS):
                if job.p_weight_gradient is not None:
                    total += tl.load(p_tile + part * wide * job.channels, mask=m_tile, other=0.0)
                bias += tl.load(p_bias + part * wide, mask=m_bias, other=0.0)
            _store_weights(total, bias, o_classes, o_channels, m_tile, m_bias, job, CONSTANTS)
    else:
        _store_weights(total, bias, o_classes, o_channels, m_tile, m_bias, job, CONSTANTS)


@triton.jit
def _weight_product(split, o_classes, o_channels, job, CONSTANTS: tl.constexpr):
    """Σ dl/dz f̄^T, [CLASSES, CHANNELS], and Σ dl/dz, [CLASSES], over one part of all images' cells."""
    total = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    bias = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.DEPTH_BLOCK), CONSTANTS.ACC)
    rows = (tl.full((), 0, tl.int64) + job.batch) * CONSTANTS.CELLS
    steps = tl.cdiv(rows, CONSTANTS.DEPTH_BLOCK)
    first = steps * split // CONSTANTS.SPLITS
    o_rows = first * CONSTANTS.DEPTH_BLOCK + tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    o_columns = o_classes.to(tl.int64)[:, None] * job.stride_class
    m_classes = (o_classes < job.classes)[:, None]
    m_channels = (o_channels < job.channels)[None, :]
    p_gradient = _gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns  # [CLASSES, DEPTH]
    p_pooled = job.p_pooled
    if job.p_weight_gradient is not None:
        p_pooled += o_rows[:, None] * job.channels + o_channels[None, :]
    block = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64)
    for _ in range(first, steps * (split + 1) // CONSTANTS.SPLITS):
        m_rows = o_rows < rows
        b_gradient = tl.load(p_gradient, mask=m_rows[None, :] & m_classes, other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * _load_upstream(job, o_rows, m_rows, CONSTANTS)[None, :]
        bias += b_gradient
        if job.p_weight_gradient is not None:
            b_pooled = tl.load(p_pooled, mask=m_rows[:, None] & m_channels, other=0.0)
            total = tl.dot(b_gradient, b_pooled, total, input_precision=CONSTANTS.PRECISION, out_dtype=CONSTANTS.ACC)
            p_pooled += block * job.channels
        o_rows += CONSTANTS.DEPTH_BLOCK
        if CONSTANTS.ROWS_APART:
            p_gradient = _gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns
        else:
            p_gradient += block * job.stride_cell
    return total, tl.sum(bias, axis=1)


@triton.jit
def _store_weights(total, bias, o_classes, o_channels, m_tile, m_bias, job, CONSTANTS: tl.constexpr):
    scale = _load_scale(job, CONSTANTS)
    if job.p_weight_gradient is not None:
        o_out = o_classes.to(tl.int64)[:, None] * job.channels + o_channels[None, :]
        store(job.p_weight_gradient + o_out, total * scale, m_tile)
    if job.p_bias_gradient is not None:
        store(job.p_bias_gradient + o_classes, bias * scale, m_bias)


@triton.jit
def _load_scale(job, CONSTANTS: tl.constexpr):
    """What every image's gradient is multiplied by."""
    scale = tl.full((), 1.0, CONSTANTS.ACC)
    if job.p_scale is not None:
        scale = tl.load(job.p_scale).to(CONSTANTS.ACC)
    return scale


@triton.jit
def _scatter_task(task, job, counters, CONSTANTS: tl.constexpr):
    """A block of channels of one image's gradient by its map: every pixel collects from the cells that cover it."""
    channel_blocks = tl.cdiv(job.channels, CONSTANTS.CHANNEL_BLOCK)
    image = task // channel_blocks
    o_channels = (task % channel_blocks) * CONSTANTS.CHANNEL_BLOCK + tl.arange(0, CONSTANTS.CHANNEL_BLOCK)
    m_channels = (o_channels < job.channels)[None, :]
    group_tasks = CONSTANTS.GROUP_TILES * tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)
    wait_for(counters.p_student_pooled + image // CONSTANTS.GROUP_IMAGES, group_tasks)

    p_cells = job.p_cells + image.to(tl.int64) * CONSTANTS.CELLS * job.channels + o_channels[None, :]
    p_map = job.p_features + image.to(tl.int64) * job.feature_stride_image
    p_map += channel_offsets(o_channels, job.feature_stride_channel, CONSTANTS.ALIGN)[None, :]
    pixels = CONSTANTS.HEIGHT * CONSTANTS.WIDTH
    for start in range(0, pixels, CONSTANTS.PIXEL_BLOCK):
        o_pixels = start + tl.arange(0, CONSTANTS.PIXEL_BLOCK)
        total = _collect(p_cells, m_channels, o_pixels, job, CONSTANTS)  # [PIXELS, CHANNELS]
        o_map = pixel_offsets(
            o_pixels, CONSTANTS.WIDTH, job.feature_stride_row, job.feature_stride_column, CONSTANTS.FLAT
        )
        store(p_map + o_map[:, None], total, (o_pixels < pixels)[:, None] & m_channels)


@triton.jit
def _collect(p_cells, m_channels, o_pixels, job, CONSTANTS: tl.constexpr):
    total = tl.zeros((CONSTANTS.PIXEL_BLOCK, CONSTANTS.CHANNEL_BLOCK), CONSTANTS.ACC)
    row = (o_pixels // CONSTANTS.WIDTH)[:, None]
    column = (o_pixels % CONSTANTS.WIDTH)[:, None]
    for start in range(0, CONSTANTS.CELLS, CONSTANTS.CELL_BLOCK):
        o_cells = start + tl.arange(0, CONSTANTS.CELL_BLOCK)
        top, bottom, left, right = cell_windows(
            o_cells, CONSTANTS.HEIGHT, CONSTANTS.WIDTH, CONSTANTS.SCALES, CONSTANTS.FIRSTS
        )
        b_covers = covers(top[None, :], bottom[None, :], left[None, :], right[None, :], row, column)
        m_cells = (o_cells < CONSTANTS.CELLS)[:, None] & m_channels
        b_cells = tl.load(p_cells + o_cells.to(tl.int64)[:, None] * job.channels, mask=m_cells, other=0.0)
        total = add_covered(b_covers, b_cells, total, CONSTANTS)
    return total


@triton.jit
def _gradient_rows(job, o_rows, CONSTANTS: tl.constexpr):
    """Where dl/dz of rows (image, cell) starts."""
    if CONSTANTS.ROWS_APART:
        image = o_rows // CONSTANTS.CELLS
        p_rows = job.p_gradient + image * job.stride_image + (o_rows % CONSTANTS.CELLS) * job.stride_cell
    else:
        p_rows = job.p_gradient + o_rows * job.stride_cell
    return p_rows


@triton.jit
def _load_upstream(job, o_rows, m_rows, CONSTANTS: tl.constexpr):
    """The upstream gradients of the images of rows; 1 where there are none."""
    upstream = tl.full(o_rows.shape, 1.0, CONSTANTS.ACC)
    if job.p_upstream is not None:
        p_rows = job.p_upstream + o_rows // CONSTANTS.CELLS * job.stride_upstream
        upstream = tl.load(p_rows, mask=m_rows, other=0.0).to(CONSTANTS.ACC)
    return upstream


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
    plan = _plan(
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
def _plan(
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
    constants = _constants(gradient, features, scales, pyramid, products)
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


def _constants(
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
