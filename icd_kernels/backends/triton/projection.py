"""Projection: local logits of base cells, W f̄ + b, as tiles of one matrix product over many images' cells."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.tasks import arrive, tile_place, wait_for


@triton.jit
def project_task(task, network, p_pooled_arrivals, p_arrivals, batch, classes, CONSTANTS: tl.constexpr):
    """One tile of partial logits: rows of one group of images, a block of classes, one part of the channels."""
    split = task % CONSTANTS.SPLITS
    class_blocks = tl.cdiv(classes, CONSTANTS.CLASS_BLOCK)
    row_tiles = tl.cdiv(batch, network.group_images) * network.group_tiles
    row, column = tile_place(task // CONSTANTS.SPLITS, row_tiles, class_blocks, network.band)
    o_classes = column * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    row_tile = row % network.group_tiles
    group = row // network.group_tiles

    images = tl.minimum(network.group_images, batch - group * network.group_images)
    cell_blocks = tl.cdiv(CONSTANTS.CELLS, CONSTANTS.CELL_BLOCK)
    wait_for(p_pooled_arrivals + group, images * cell_blocks * tl.cdiv(network.channels, CONSTANTS.CHANNEL_BLOCK))

    first_row = group.to(tl.int64) * network.group_images * CONSTANTS.CELLS
    o_local = row_tile * CONSTANTS.ROW_BLOCK + tl.arange(0, CONSTANTS.ROW_BLOCK)
    m_rows = o_local < images * CONSTANTS.CELLS
    o_rows = first_row + o_local
    logits = _project(network, o_rows, m_rows, o_classes, o_classes < classes, split, CONSTANTS)
    if network.p_bias is not None:
        p_bias = network.p_bias + o_classes.to(tl.int64) * network.stride_bias
        b_bias = tl.load(p_bias, mask=o_classes < tl.where(split == 0, classes, 0), other=0.0)
        logits += b_bias.to(CONSTANTS.ACC)[None, :]

    o_out = (split.to(tl.int64) * batch * CONSTANTS.CELLS + o_rows)[:, None] * classes + o_classes[None, :]
    tl.store(network.p_logits + o_out, logits, mask=m_rows[:, None] & (o_classes < classes)[None, :])
    arrive(p_arrivals + group)


@triton.jit
def _project(network, o_rows, m_rows, o_classes, m_classes, split, CONSTANTS: tl.constexpr):
    logits = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    depth = tl.cdiv(tl.cdiv(network.channels, CONSTANTS.DEPTH_BLOCK), CONSTANTS.SPLITS) * CONSTANTS.DEPTH_BLOCK
    stop = tl.minimum((split + 1) * depth, network.channels)
    o_depth = tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    o_first = (split * depth + o_depth).to(tl.int64)
    p_pooled = network.p_pooled + o_rows[:, None] * network.channels + o_first[None, :]
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
