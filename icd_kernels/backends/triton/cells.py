"""Cells on the device: their windows (those of icd_kernels/geometry.py) and which pixel lies in which."""

import triton
import triton.language as tl


@triton.jit
def window_start(index, scale, extent):
    """First of the `extent` places that window `index` of `scale` covers."""
    return index * extent // scale


@triton.jit
def window_stop(index, scale, extent):
    """One past the last. The windows of `scale` that cover place p are window p of `extent` windows over `scale`."""
    return ((index + 1) * extent + scale - 1) // scale


@triton.jit
def cell_windows(o_cells, height, width, SCALES: tl.constexpr, FIRSTS: tl.constexpr):
    """Top, bottom, left and right of base cells `o_cells`; empty beyond the last one."""
    top = o_cells * 0
    bottom = top
    left = top
    right = top
    for s in tl.static_range(len(SCALES)):
        local = o_cells - FIRSTS[s]
        row = local // SCALES[s]
        column = local % SCALES[s]
        inside = (local >= 0) & (local < SCALES[s] * SCALES[s])
        top = tl.where(inside, window_start(row, SCALES[s], height), top)
        bottom = tl.where(inside, window_stop(row, SCALES[s], height), bottom)
        left = tl.where(inside, window_start(column, SCALES[s], width), left)
        right = tl.where(inside, window_stop(column, SCALES[s], width), right)
    return top, bottom, left, right


@triton.jit
def covers(top, bottom, left, right, row, column):
    """Whether windows cover pixels; all arguments broadcast."""
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


@triton.jit
def channel_offsets(o_channels, stride_channel, ALIGN: tl.constexpr):
    """Where channels start; ALIGN divides the stride."""
    return o_channels.to(tl.int64) * (stride_channel // ALIGN * ALIGN)


@triton.jit
def add_covered(b_covers, b_values, total, CONSTANTS: tl.constexpr):
    """total + b_covers @ b_values, exact but for the order of sums; b_covers is 0 or 1.

    On tensor cores: halves as they are, float32 as three bfloat16 that add up to it (8 + 8 + 8 bits). Where there is
    NaN or inf among the values, so it is in the sum.
    """
    if CONSTANTS.PARTS == 3:
        for part in tl.static_range(3):
            high = (b_values.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            total = tl.dot(b_covers.to(tl.bfloat16), high.to(tl.bfloat16), total, out_dtype=tl.float32)
            if part < 2:
                b_values = b_values - high
    else:
        total = tl.dot(b_covers.to(b_values.dtype), b_values, total, input_precision="ieee", out_dtype=CONSTANTS.ACC)
    return total


@triton.jit
def pixel_offsets(o_pixels, width, stride_row, stride_column, FLAT: tl.constexpr):
    """Where pixels lie within a channel."""
    if FLAT:
        o_map = o_pixels.to(tl.int64) * stride_column
    else:
        o_map = (o_pixels // width).to(tl.int64) * stride_row + (o_pixels % width).to(tl.int64) * stride_column
    return o_map


@triton.jit
def store(p_out, value, mask):
    """Stores in the dtype of `p_out`; to a half by way of float32, which every target and the interpreter can round."""
    if p_out.dtype.element_ty.primitive_bitwidth < 32:
        tl.store(p_out, value.to(tl.float32), mask=mask)
    else:
        tl.store(p_out, value, mask=mask)


@triton.jit
def scale_of_cell(cell, SCALES: tl.constexpr, FIRSTS: tl.constexpr, WEIGHTS: tl.constexpr, ACC: tl.constexpr):
    """Scale of cell number `cell`, first cell of that scale, and the weight of one of its Gram matrices."""
    scale = cell * 0 + SCALES[0]
    first = cell * 0
    weight = tl.full((), WEIGHTS[0], ACC)
    for s in tl.static_range(1, len(SCALES)):
        is_later = cell >= FIRSTS[s]
        scale = tl.where(is_later, SCALES[s], scale)
        first = tl.where(is_later, FIRSTS[s], first)
        weight = tl.where(is_later, tl.full((), WEIGHTS[s], ACC), weight)
    return scale, first, weight
