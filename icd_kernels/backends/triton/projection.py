"""Projection: local logits of base cells, W f̄ + b, as tiles of one matrix product over many images' cells."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.tasks import arrive, wait_for


@triton.jit
def project_task(task, network, p_pooled_arrivals, p_arrivals, batch, classes, CONSTANTS: tl.constexpr):
    """One tile of partial logits: rows of one group of images, a block of classes, one part of the channels."""
    split = task % CONSTANTS.SPLITS
    class_blocks = tl.cdiv(classes, CONSTANTS.CLASS_BLOCK)
    row_tiles = tl.cdiv(batch, CONSTANTS.GROUP_IMAGES) * CONSTANTS.GROUP_TILES
    row, column = tile_place(task // CONSTANTS.SPLITS, row_tiles, class_blocks, CONSTANTS.BAND)
    o_classes = column * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    row_tile = row % CONSTANTS.GROUP_TILES
    group = row // CONSTANTS.GROUP_TILES

    images = tl.minimum(CONSTANTS.GROUP_IMAGES, batch - group * CONSTANTS.GROUP_IMAGES)
    cell_blocks = tl.cdiv(CONSTANTS.CELLS, CONSTANTS.CELL_BLOCK)
    wait_for(p_pooled_arrivals + group, images * cell_blocks * tl.cdiv(network.channels, CONSTANTS.CHANNEL_BLOCK))

    first_row = row_tile * CONSTANTS.ROW_BLOCK  # of the group
    o_rows = tl.arange(0, CONSTANTS.ROW_BLOCK)
    m_rows = o_rows < images * CONSTANTS.CELLS - first_row
    start = group.to(tl.int64) * (CONSTANTS.GROUP_IMAGES * CONSTANTS.CELLS) + first_row
    logits = _project(network, start, o_rows, m_rows, o_classes, o_classes < classes, split, CONSTANTS)
    if network.p_bias is not None:
        p_bias = network.p_bias + o_classes.to(tl.int64) * network.stride_bias
        b_bias = tl.load(p_bias, mask=o_classes < tl.where(split == 0, classes, 0), other=0.0)
        logits += b_bias.to(CONSTANTS.ACC)[None, :]

    p_out = network.p_logits + (split.to(tl.int64) * batch * CONSTANTS.CELLS + start) * classes
    o_out = o_rows[:, None] * classes + o_classes[None, :]
    tl.store(p_out + o_out, logits, mask=m_rows[:, None] & (o_classes < classes)[None, :])
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
def _project(network, start_row, o_rows, m_rows, o_classes, m_classes, split, CONSTANTS: tl.constexpr):
    logits = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    depth = tl.cdiv(tl.cdiv(network.channels, CONSTANTS.DEPTH_BLOCK), CONSTANTS.SPLITS) * CONSTANTS.DEPTH_BLOCK
    stop = tl.minimum((split + 1) * depth, network.channels)
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
