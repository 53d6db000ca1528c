"""Pooling: mean features of cells, as a matrix product of "which pixel lies in which cell" with the feature map.

Every pixel is read once, in the order it lies in memory, whatever the scales; cells may overlap or repeat pixels. The
products are with 0 and 1, so on the tensor cores halves stay exact.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import add_covered, cell_windows, channel_offsets, covers, pixel_offsets
from icd_kernels.backends.triton.tasks import arrive


@triton.jit
def pool_tasks(network, CONSTANTS: tl.constexpr):
    """Tasks of one image."""
    return tl.cdiv(network.channels, CONSTANTS.CHANNEL_BLOCK) * tl.cdiv(CONSTANTS.CELLS, CONSTANTS.CELL_BLOCK)


@triton.jit
def pool_task(task, network, p_arrivals, group_images, CONSTANTS: tl.constexpr):
    """Pools one block of channels of one image over one block of its cells.

    `p_arrivals`: one counter for every `group_images` images; None where nothing waits within the launch.
    """
    channel_blocks = tl.cdiv(network.channels, CONSTANTS.CHANNEL_BLOCK)
    cell_blocks = tl.cdiv(CONSTANTS.CELLS, CONSTANTS.CELL_BLOCK)
    image = task // (channel_blocks * cell_blocks)
    o_channels = (task % channel_blocks) * CONSTANTS.CHANNEL_BLOCK + tl.arange(0, CONSTANTS.CHANNEL_BLOCK)
    o_cells = (task // channel_blocks % cell_blocks) * CONSTANTS.CELL_BLOCK + tl.arange(0, CONSTANTS.CELL_BLOCK)

    top, bottom, left, right = cell_windows(
        o_cells, CONSTANTS.HEIGHT, CONSTANTS.WIDTH, CONSTANTS.SCALES, CONSTANTS.FIRSTS
    )
    p_map = network.p_features + image.to(tl.int64) * network.stride_image
    p_map += channel_offsets(o_channels, network.stride_channel, CONSTANTS.ALIGN)[None, :]  # [1, CHANNELS]
    m_channels = (o_channels < network.channels)[None, :]
    total = _sum_pixels(p_map, m_channels, top, bottom, left, right, network, CONSTANTS)  # [CELLS, CHANNELS]
    if tl.sum((total - total != 0).to(tl.int32)) > 0:
        total = _sum_pixels_apart(p_map, m_channels, top, bottom, left, right, network, CONSTANTS)

    size = ((bottom - top) * (right - left))[:, None]
    o_out = (image.to(tl.int64) * CONSTANTS.CELLS + o_cells)[:, None] * network.channels + o_channels[None, :]
    m_out = (o_cells < CONSTANTS.CELLS)[:, None] & m_channels
    tl.store(network.p_pooled + o_out, total / size, mask=m_out)
    if p_arrivals is not None:
        arrive(p_arrivals + image // group_images)


@triton.jit
def _sum_pixels(p_map, m_channels, top, bottom, left, right, network, CONSTANTS: tl.constexpr):
    total = tl.zeros((CONSTANTS.CELL_BLOCK, CONSTANTS.CHANNEL_BLOCK), CONSTANTS.ACC)
    pixels = CONSTANTS.HEIGHT * CONSTANTS.WIDTH
    for start in range(0, pixels, CONSTANTS.PIXEL_BLOCK):
        o_pixels = start + tl.arange(0, CONSTANTS.PIXEL_BLOCK)
        o_map = pixel_offsets(o_pixels, CONSTANTS.WIDTH, network.stride_row, network.stride_column, CONSTANTS.FLAT)
        m_map = (o_pixels < pixels)[:, None] & m_channels
        b_features = tl.load(p_map + o_map[:, None], mask=m_map, other=0.0)  # [PIXELS, CHANNELS]
        row = (o_pixels // CONSTANTS.WIDTH)[None, :]
        column = (o_pixels % CONSTANTS.WIDTH)[None, :]
        b_covers = covers(top[:, None], bottom[:, None], left[:, None], right[:, None], row, column)
        total = add_covered(b_covers, b_features.to(CONSTANTS.POOL), total, CONSTANTS)
    return total


@triton.jit
def _sum_pixels_apart(p_map, m_channels, top, bottom, left, right, network, CONSTANTS: tl.constexpr):
    """The same without products: 0 times NaN or inf would carry these into cells that do not cover them."""
    total = tl.zeros((CONSTANTS.CELL_BLOCK, CONSTANTS.CHANNEL_BLOCK), CONSTANTS.ACC)
    first = tl.full((), 0, tl.int64)
    for row in range(CONSTANTS.HEIGHT):
        for column in range(CONSTANTS.WIDTH):
            o_map = (first + row) * network.stride_row + (first + column) * network.stride_column
            b_features = tl.load(p_map + o_map, mask=m_channels, other=0.0).to(CONSTANTS.ACC)  # [1, CHANNELS]
            total += tl.where(covers(top, bottom, left, right, row, column)[:, None], b_features, 0.0)
    return total
