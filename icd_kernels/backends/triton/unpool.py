"""The gradient by the map: every pixel collects the gradients of the cells that cover it."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cell_gradient import cell_tasks
from icd_kernels.backends.triton.cells import add_covered, cell_windows, channel_offsets, covers, pixel_offsets, store
from icd_kernels.backends.triton.tasks import wait_for


@triton.jit
def unpool_task(task, job, counters, group_images, CONSTANTS: tl.constexpr):
    """A block of channels of one image's gradient by its map: every pixel collects from the cells that cover it."""
    channel_blocks = tl.cdiv(job.channels, CONSTANTS.CHANNEL_BLOCK)
    image = task // channel_blocks
    o_channels = (task % channel_blocks) * CONSTANTS.CHANNEL_BLOCK + tl.arange(0, CONSTANTS.CHANNEL_BLOCK)
    m_channels = (o_channels < job.channels)[None, :]
    wait_for(counters.p_student_pooled + image // group_images, cell_tasks(job, group_images, CONSTANTS))
    unpool_channels(image, o_channels, m_channels, job, False, CONSTANTS)


@triton.jit
def unpool_channels(image, o_channels, m_channels, job, DIVIDED: tl.constexpr, CONSTANTS: tl.constexpr):
    """Writes a block of channels of one image's gradient by its map. DIVIDED: by the cells' sizes here."""
    p_cells = job.p_cells + image.to(tl.int64) * CONSTANTS.CELLS * job.channels + o_channels[None, :]
    p_map = job.p_features + image.to(tl.int64) * job.feature_stride_image
    p_map += channel_offsets(o_channels, job.feature_stride_channel, CONSTANTS.ALIGN)[None, :]
    pixels = CONSTANTS.HEIGHT * CONSTANTS.WIDTH
    for start in range(0, pixels, CONSTANTS.PIXEL_BLOCK):
        o_pixels = start + tl.arange(0, CONSTANTS.PIXEL_BLOCK)
        total = _collect(p_cells, m_channels, o_pixels, job, DIVIDED, CONSTANTS)  # [PIXELS, CHANNELS]
        o_map = pixel_offsets(
            o_pixels, CONSTANTS.WIDTH, job.feature_stride_row, job.feature_stride_column, CONSTANTS.FLAT
        )
        store(p_map + o_map[:, None], total, (o_pixels < pixels)[:, None] & m_channels)


@triton.jit
def _collect(p_cells, m_channels, o_pixels, job, DIVIDED: tl.constexpr, CONSTANTS: tl.constexpr):
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
        if DIVIDED:
            size = tl.maximum((bottom - top) * (right - left), 1).to(CONSTANTS.ACC)
            b_cells = b_cells / size[:, None]
        total = add_covered(b_covers, b_cells, total, CONSTANTS)
    return total
