"""Projection: local logits of base cells, W f̄ + b, as tiles of one matrix product over many images' cells."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.pool import pool_tasks
from icd_kernels.backends.triton.tasks import arrive, wait_for


@triton.jit
def group_tasks(network, division, CONSTANTS: tl.constexpr):
    """Tasks of one group of images, whose base cells are the rows of one matrix product.

    `division`: images of a group, and parts that the channels are split into. They follow from the batch, so that the
    kernel is not compiled for them.
    """
    row_tiles = tl.cdiv(division[0] * CONSTANTS.CELLS, CONSTANTS.ROW_BLOCK)
    return row_tiles * tl.cdiv(network.classes, CONSTANTS.CLASS_BLOCK) * division[1]


@triton.jit
def divided(network, group_images, splits, CONSTANTS: tl.constexpr):
    """How a projection is divided: images of a group, parts of the channels, tasks of a group."""
    return group_images, splits, group_tasks(network, (group_images, splits), CONSTANTS)


@triton.jit
def project_task(task, network, p_pooled_arrivals, p_arrivals, batch, division, CONSTANTS: tl.constexpr):
    """One tile of partial logits: rows of one group of images, a block of classes, one part of the channels."""
    group_images = division[0]
    splits = division[1]
    group_tiles = tl.cdiv(group_images * CONSTANTS.CELLS, CONSTANTS.ROW_BLOCK)
    split = task % splits
    class_blocks = tl.cdiv(network.classes, CONSTANTS.CLASS_BLOCK)
    row, column = tile_place(task // splits, tl.cdiv(batch, group_images) * group_tiles, class_blocks, CONSTANTS.BAND)
    group = row // group_tiles
    images = tl.minimum(group_images, batch - group * group_images)
    wait_for(p_pooled_arrivals + group, images * pool_tasks(network, CONSTANTS))

    first_row = (row % group_tiles) * CONSTANTS.ROW_BLOCK  # of the group
    o_rows = tl.arange(0, CONSTANTS.ROW_BLOCK)
    m_rows = o_rows < images * CONSTANTS.CELLS - first_row
    start = group.to(tl.int64) * (group_images * CONSTANTS.CELLS) + first_row
    o_classes = column * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    logits = _project(network, start, o_rows, m_rows, o_classes, split, splits, CONSTANTS)
    if network.p_bias is not None:
        p_bias = network.p_bias + o_classes.to(tl.int64) * network.stride_bias
        b_bias = tl.load(p_bias, mask=o_classes < tl.where(split == 0, network.classes, 0), other=0.0)
        logits += b_bias.to(CONSTANTS.ACC)[None, :]

    p_out = network.p_logits + (split.to(tl.int64) * batch * CONSTANTS.CELLS + start) * network.pitch
    o_out = o_rows[:, None] * network.pitch + o_classes[None, :]
    tl.store(p_out + o_out, logits, mask=m_rows[:, None] & (o_classes < network.pitch)[None, :])
    arrive(p_arrivals + group)


@triton.jit
def tile_place(tile, rows, columns, BAND: tl.constexpr):
    """Row and column of tile number `tile`: rows vary fastest within bands of that many rows, then columns.

    Programs run in order, so those of a band read each column's operand at about the same time.
    """
    if BAND == 1:
        row = tile // columns
        column = tile % columns
    else:
        first = tile // (BAND * columns) * BAND
        height = tl.minimum(BAND, rows - first)
        within = tile - first * columns
        row = first + within % height
        column = within // height
    return row, column


@triton.jit
def _project(network, start_row, o_rows, m_rows, o_classes, split, splits, CONSTANTS: tl.constexpr):
    logits = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    depth = tl.cdiv(tl.cdiv(network.channels, CONSTANTS.DEPTH_BLOCK), splits) * CONSTANTS.DEPTH_BLOCK
    stop = tl.minimum((split + 1) * depth, network.channels)
    m_classes = o_classes < network.classes
    o_depth = tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    o_first = (split * depth + o_depth).to(tl.int64)
    p_pooled = network.p_pooled + start_row * network.channels + split * depth
    p_pooled += o_rows[:, None] * network.channels + o_depth[None, :]
    p_weight = network.p_weight + o_classes.to(tl.int64)[None, :] * network.stride_class
    p_weight += o_first[:, None] * network.stride_depth
    step = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64) * network.stride_depth
    for start in range(split * depth, stop, CONSTANTS.DEPTH_BLOCK):
        m_depth = o_depth < stop - start
        b_pooled = tl.load(p_pooled, mask=m_rows[:, None] & m_depth[None, :], other=0.0)
        b_weight = tl.load(p_weight, mask=m_depth[:, None] & m_classes[None, :], other=0.0)  # [DEPTH, CLASSES]
        p_pooled += CONSTANTS.DEPTH_BLOCK
        p_weight += step
        logits = tl.dot(
            b_pooled,
            b_weight.to(CONSTANTS.ACC),
            logits,
            input_precision=CONSTANTS.PRECISION,
            out_dtype=CONSTANTS.ACC,
        )
    return logits
