"""The gradient by the pooled features, dl/dz W, as tiles of one matrix product over many images' cells."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import cell_windows
from icd_kernels.backends.triton.tasks import arrive
from icd_kernels.backends.triton.upstream import gradient_rows, load_scale, load_upstream


@triton.jit
def cell_tasks(job, group_images, CONSTANTS: tl.constexpr):
    """Tasks of one group of images."""
    row_tiles = tl.cdiv(group_images * CONSTANTS.CELLS, CONSTANTS.ROW_BLOCK)
    return row_tiles * tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)


@triton.jit
def cell_task(task, job, counters, batch, group_images, CONSTANTS: tl.constexpr):
    """A tile of dl/df̄ = dl/dz W over the cell's size: rows of one group of images, a block of channels."""
    channel_blocks = tl.cdiv(job.channels, CONSTANTS.CLASS_BLOCK)
    o_channels = (task % channel_blocks) * CONSTANTS.CLASS_BLOCK + tl.arange(0, CONSTANTS.CLASS_BLOCK)
    group_tiles = tl.cdiv(group_images * CONSTANTS.CELLS, CONSTANTS.ROW_BLOCK)
    row_tile = task // channel_blocks % group_tiles
    group = task // channel_blocks // group_tiles
    images = tl.minimum(group_images, batch - group * group_images)
    o_local = row_tile * CONSTANTS.ROW_BLOCK + tl.arange(0, CONSTANTS.ROW_BLOCK)
    m_rows = o_local < images * CONSTANTS.CELLS
    o_rows = group.to(tl.int64) * group_images * CONSTANTS.CELLS + o_local

    total = _cell_product(o_rows, m_rows, o_channels, job, CONSTANTS)
    top, bottom, left, right = cell_windows(
        o_local % CONSTANTS.CELLS, CONSTANTS.HEIGHT, CONSTANTS.WIDTH, CONSTANTS.SCALES, CONSTANTS.FIRSTS
    )
    size = tl.maximum((bottom - top) * (right - left), 1).to(CONSTANTS.ACC)
    total = total * (load_scale(job, CONSTANTS) / size)[:, None]
    o_out = o_rows[:, None] * job.channels + o_channels[None, :]
    tl.store(job.p_cells + o_out, total, mask=m_rows[:, None] & (o_channels < job.channels)[None, :])
    arrive(counters.p_student_pooled + group)


@triton.jit
def _cell_product(o_rows, m_rows, o_channels, job, CONSTANTS: tl.constexpr):
    """dl/dz W of rows (image, cell) and a block of channels, [ROWS, CHANNELS]."""
    total = tl.zeros((CONSTANTS.ROW_BLOCK, CONSTANTS.CLASS_BLOCK), CONSTANTS.ACC)
    o_classes = tl.arange(0, CONSTANTS.DEPTH_BLOCK)
    p_gradient = gradient_rows(job, o_rows, CONSTANTS)[:, None] + o_classes.to(tl.int64)[None, :] * job.stride_class
    p_weight = job.p_weight + o_classes.to(tl.int64)[:, None] * job.weight_stride_class
    p_weight += o_channels.to(tl.int64)[None, :] * job.weight_stride_depth
    m_channels = o_channels < job.channels
    upstream = load_upstream(job, o_rows, m_rows, CONSTANTS)
    block = tl.full((), CONSTANTS.DEPTH_BLOCK, tl.int64)
    for start in range(0, job.classes, CONSTANTS.DEPTH_BLOCK):
        m_classes = o_classes < job.classes - start
        m_gradient = m_rows[:, None] & (o_classes < job.depth - start)[None, :]
        b_gradient = tl.load(p_gradient, mask=m_gradient, other=0.0).to(CONSTANTS.ACC)
        b_weight = tl.load(p_weight, mask=m_classes[:, None] & m_channels[None, :], other=0.0).to(CONSTANTS.ACC)
        if job.p_upstream is not None:
            b_gradient = b_gradient * upstream[:, None]
        total = tl.dot(b_gradient, b_weight, total, input_precision=CONSTANTS.PRECISION, out_dtype=CONSTANTS.ACC)
        p_gradient += block * job.stride_class
        p_weight += block * job.weight_stride_class
    return total
