"""The gradients by weight and bias, sums over all images' cells, in parts where there are few tiles."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import store
from icd_kernels.backends.triton.tasks import arrive
from icd_kernels.backends.triton.upstream import gradient_rows, load_scale, load_upstream


@triton.jit
def weight_task(task, job, counters, CONSTANTS: tl.constexpr):
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
    p_gradient = gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns  # [CLASSES, DEPTH]
    p_pooled = job.p_pooled
    if job.p_weight_gradient is not None:
        p_pooled += o_rows[:, None] * job.channels + o_channels[None, :]
    block = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64)
    for _ in range(first, steps * (split + 1) // CONSTANTS.SPLITS):
        m_rows = o_rows < rows
        b_gradient = tl.load(p_gradient, mask=m_rows[None, :] & m_classes, other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * load_upstream(job, o_rows, m_rows, CONSTANTS)[None, :]
        bias += b_gradient
        if job.p_weight_gradient is not None:
            b_pooled = tl.load(p_pooled, mask=m_rows[:, None] & m_channels, other=0.0)
            total = tl.dot(b_gradient, b_pooled, total, input_precision=CONSTANTS.PRECISION, out_dtype=CONSTANTS.ACC)
            p_pooled += block * job.channels
        o_rows += CONSTANTS.DEPTH_BLOCK
        if CONSTANTS.ROWS_APART:
            p_gradient = gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns
        else:
            p_gradient += block * job.stride_cell
    return total, tl.sum(bias, axis=1)


@triton.jit
def _store_weights(total, bias, o_classes, o_channels, m_tile, m_bias, job, CONSTANTS: tl.constexpr):
    scale = load_scale(job, CONSTANTS)
    if job.p_weight_gradient is not None:
        o_out = o_classes.to(tl.int64)[:, None] * job.channels + o_channels[None, :]
        store(job.p_weight_gradient + o_out, total * scale, m_tile)
    if job.p_bias_gradient is not None:
        store(job.p_bias_gradient + o_classes, bias * scale, m_bias)
