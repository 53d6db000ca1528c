"""The gradients by weight and bias, sums over all images' cells, in parts where there are few tiles."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import store
from icd_kernels.backends.triton.tasks import arrive
from icd_kernels.backends.triton.upstream import gradient_rows, load_scale, load_upstream


@triton.jit
def weight_tasks(job, splits, CONSTANTS: tl.constexpr):
    """How many tasks there are; 0 where neither gradient is wanted."""
    tiles = tl.full((), 0, tl.int32)
    if (job.p_weight_gradient is not None) or (job.p_bias_gradient is not None):
        tiles = tl.cdiv(job.classes, CONSTANTS.ROW_BLOCK) * _channel_blocks(job, CONSTANTS)
    return tiles * splits


@triton.jit
def _channel_blocks(job, CONSTANTS: tl.constexpr):
    blocks = tl.full((), 1, tl.int32)
    if job.p_weight_gradient is not None:
        blocks = tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)
    return blocks


@triton.jit
def weight_task(task, job, counters, batch, splits, CONSTANTS: tl.constexpr):
    """A tile of dl/dW = Σ dl/dz f̄^T over all images' cells; the first block of channels also does dl/db = Σ dl/dz.

    Blocks of channels vary fastest: for many classes dl/dz is the larger operand, and is read by all of them together.
    Where the images are split, the last part to arrive adds up all parts in order.
    """
    split = task % splits
    tile = task // splits
    channel_blocks = _channel_blocks(job, CONSTANTS)
    channel_block = tile % channel_blocks
    o_classes = (tile // channel_blocks) * CONSTANTS.ROW_BLOCK + tl.arange(0, CONSTANTS.ROW_BLOCK)
    o_channels = channel_block * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    rows = (tl.full((), 0, tl.int64) + batch) * CONSTANTS.CELLS
    steps = tl.cdiv(rows, CONSTANTS.DEPTH_BLOCK)
    first = steps * split // splits * CONSTANTS.DEPTH_BLOCK
    stop = tl.minimum(steps * (split + 1) // splits * CONSTANTS.DEPTH_BLOCK, rows)
    total = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    if job.p_weight_gradient is not None:
        total = _weight_product(first, stop, o_classes, o_channels, job, CONSTANTS)
    bias = tl.zeros((CONSTANTS.ROW_BLOCK,), CONSTANTS.ACC)
    if channel_block == 0:
        bias = _bias_sum(first, stop, o_classes, job, CONSTANTS)
    m_bias = o_classes < tl.where(channel_block == 0, job.classes, 0)
    if splits > 1:
        _add_parts(total, bias, m_bias, split, splits, tile, o_classes, o_channels, job, counters, CONSTANTS)
    else:
        _store_weights(total, bias, m_bias, o_classes, o_channels, job, CONSTANTS)


@triton.jit
def _add_parts(total, bias, m_bias, split, splits, tile, o_classes, o_channels, job, counters, CONSTANTS: tl.constexpr):
    """Leaves one part of the sums in the workspace; the last part to arrive adds up all and stores them."""
    wide = tl.full((), 0, tl.int64) + job.classes
    m_tile = (o_classes < job.classes)[:, None] & (o_channels < job.channels)[None, :]
    p_tile = job.p_partial + o_classes.to(tl.int64)[:, None] * job.channels + o_channels[None, :]
    p_bias = job.p_partial + o_classes
    if job.p_weight_gradient is not None:
        p_bias += splits * wide * job.channels
        tl.store(p_tile + split * wide * job.channels, total, mask=m_tile)
    tl.store(p_bias + split * wide, bias, mask=m_bias)
    is_whole = arrive(counters.p_images + tile) == splits - 1
    tl.debug_barrier()
    if is_whole:
        total = total * 0
        bias = bias * 0
        for part in range(splits):
            if job.p_weight_gradient is not None:
                total += tl.load(p_tile + part * wide * job.channels, mask=m_tile, other=0.0)
            bias += tl.load(p_bias + part * wide, mask=m_bias, other=0.0)
        _store_weights(total, bias, m_bias, o_classes, o_channels, job, CONSTANTS)


@triton.jit
def _weight_product(first, stop, o_classes, o_channels, job, CONSTANTS: tl.constexpr):
    """Σ dl/dz f̄^T, [CLASSES, CHANNELS], over rows (image, cell) from `first` to `stop`.

    Nothing but the product uses its operands: a second use would leave them in shared memory as they came, where
    tensor cores read them with conflicts in every bank.
    """
    total = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    o_rows = first + tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    o_columns = o_classes.to(tl.int64)[:, None] * job.stride_class
    m_classes = (o_classes < job.depth)[:, None]
    m_channels = (o_channels < job.channels)[None, :]
    p_gradient = gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns  # [CLASSES, DEPTH]
    p_pooled = job.p_pooled + o_rows[:, None] * job.channels + o_channels[None, :]
    block = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64)
    for _ in range(first, stop, CONSTANTS.DEPTH_BLOCK):
        m_rows = o_rows < stop
        b_gradient = tl.load(p_gradient, mask=m_rows[None, :] & m_classes, other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * load_upstream(job, o_rows, m_rows, CONSTANTS)[None, :]
        b_pooled = tl.load(p_pooled, mask=m_rows[:, None] & m_channels, other=0.0)
        total = tl.dot(b_gradient, b_pooled, total, input_precision=CONSTANTS.PRECISION, out_dtype=CONSTANTS.ACC)
        p_pooled += block * job.channels
        o_rows += CONSTANTS.DEPTH_BLOCK
        if CONSTANTS.ROWS_APART:
            p_gradient = gradient_rows(job, o_rows, CONSTANTS)[None, :] + o_columns
        else:
            p_gradient += block * job.stride_cell
    return total


@triton.jit
def _bias_sum(first, stop, o_classes, job, CONSTANTS: tl.constexpr):
    """Σ dl/dz, [CLASSES], over rows (image, cell) from `first` to `stop`."""
    bias = tl.zeros((CONSTANTS.DEPTH_BLOCK, CONSTANTS.ROW_BLOCK), CONSTANTS.ACC)
    m_classes = (o_classes < job.depth)[None, :]
    for start in range(first, stop, CONSTANTS.DEPTH_BLOCK):
        o_rows = start + tl.arange(0, CONSTANTS.DEPTH_BLOCK)
        m_rows = o_rows < stop
        p_gradient = gradient_rows(job, o_rows, CONSTANTS)[:, None] + o_classes.to(tl.int64)[None, :] * job.stride_class
        b_gradient = tl.load(p_gradient, mask=m_rows[:, None] & m_classes, other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * load_upstream(job, o_rows, m_rows, CONSTANTS)[:, None]
        bias += b_gradient
    return tl.sum(bias, axis=0)


@triton.jit
def _store_weights(total, bias, m_bias, o_classes, o_channels, job, CONSTANTS: tl.constexpr):
    scale = load_scale(job, CONSTANTS)
    m_classes = o_classes < job.classes
    if job.p_weight_gradient is not None:
        o_out = o_classes.to(tl.int64)[:, None] * job.channels + o_channels[None, :]
        store(job.p_weight_gradient + o_out, total * scale, m_classes[:, None] & (o_channels < job.channels)[None, :])
    if job.p_bias_gradient is not None:
        store(job.p_bias_gradient + o_classes, bias * scale, m_bias)
