"""Normalised logits of any cell from the stored ones: sum the splits, average the finest cells, divide by the norm."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import window_start, window_stop
from icd_kernels.backends.triton.tasks import wait_for

NORM_FLOOR: tl.constexpr = tl.constexpr(1e-12)  # that of icd_kernels/options.py; the tests compare them


@triton.jit
def wait_for_logits(logits, image, CONSTANTS: tl.constexpr):
    """Returns once the logits of `image` can be read."""
    if logits.p_arrivals is not None:
        wait_for(logits.p_arrivals + image // CONSTANTS.GROUP_IMAGES, logits.arrivals)


@triton.jit
def assemble_rows(
    logits,
    p_out,
    p_raw,
    o_images,
    o_local,
    m_rows,
    first,
    scale,
    classes,
    CONSTANTS: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Writes normalised logits (B, N, K) of cells `o_local` of one scale of `o_images`; returns their divisors.

    Also writes them as they were to `p_raw` unless that is None. BLOCK classes are assembled at a
    time, VECTOR normalised.
    """
    o_rows = (o_images.to(tl.int64) * FORM.CELLS + first + o_local)[:, None] * classes
    total = tl.zeros(o_local.shape, FORM.ACC)
    square = total
    for start in range(0, classes, BLOCK):
        o_classes = start + tl.arange(0, BLOCK)
        m_tile = m_rows[:, None] & (o_classes < classes)[None, :]
        b_logits = _load_cells(logits, o_images, o_local, first, scale, o_classes, m_tile, CONSTANTS, FORM)
        tl.store(p_out + o_rows + o_classes[None, :], b_logits, mask=m_tile)
        if p_raw is not None:
            tl.store(p_raw + o_rows + o_classes[None, :], b_logits, mask=m_tile)
        total += tl.sum(b_logits, axis=1)
        square += tl.sum(b_logits * b_logits, axis=1)
    tl.debug_barrier()
    return _normalize(p_out + o_rows, m_rows, total, square, classes, FORM, VECTOR)


@triton.jit
def _normalize(p_rows, m_rows, total, square, classes, FORM: tl.constexpr, BLOCK: tl.constexpr):
    mean = total * 0
    divisor = mean + 1
    if FORM.NORMALIZE == "zscore":
        mean = total / classes
        square = _centred_squares(p_rows, m_rows, mean, classes, BLOCK) / classes
    if FORM.NORMALIZE != "none":
        divisor = tl.sqrt(square)
        divisor = tl.where(divisor < NORM_FLOOR, NORM_FLOOR, divisor)
        for start in range(0, classes, BLOCK):
            o_classes = (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (o_classes < classes)
            b_logits = tl.load(p_rows + o_classes, mask=m_tile, other=0.0)
            tl.store(p_rows + o_classes, (b_logits - mean[:, None]) / divisor[:, None], mask=m_tile)
        tl.debug_barrier()
    return divisor


@triton.jit
def _centred_squares(p_rows, m_rows, mean, classes, BLOCK: tl.constexpr):
    square = mean * 0
    for start in range(0, classes, BLOCK):
        o_classes = (start + tl.arange(0, BLOCK))[None, :]
        m_tile = m_rows[:, None] & (o_classes < classes)
        b_centred = tl.where(m_tile, tl.load(p_rows + o_classes, mask=m_tile, other=0.0) - mean[:, None], 0.0)
        square += tl.sum(b_centred * b_centred, axis=1)
    return square


@triton.jit
def _load_cells(
    logits, o_images, o_local, first, scale, o_classes, m_tile, CONSTANTS: tl.constexpr, FORM: tl.constexpr
):
    """Logits [ROWS, CLASSES] of cells of one scale: means over the finest grid where only that is stored."""
    p_images = logits.p_logits + o_images.to(tl.int64)[:, None] * logits.stride_image
    p_images += o_classes.to(tl.int64)[None, :] * logits.stride_class
    if CONSTANTS.FINEST == 0:
        p_cells = p_images + (first + o_local).to(tl.int64)[:, None] * logits.stride_cell
        b_logits = sum_splits(p_cells, m_tile, logits.stride_split, CONSTANTS, FORM)
    else:
        b_logits = _average(p_images, o_local, scale, m_tile, logits, CONSTANTS, FORM)
    return b_logits


@triton.jit
def _average(p_images, o_local, scale, m_tile, logits, CONSTANTS: tl.constexpr, FORM: tl.constexpr):
    top = window_start(o_local // scale, scale, CONSTANTS.FINEST)
    bottom = window_stop(o_local // scale, scale, CONSTANTS.FINEST)
    left = window_start(o_local % scale, scale, CONSTANTS.FINEST)
    right = window_stop(o_local % scale, scale, CONSTANTS.FINEST)
    extent = tl.cdiv(CONSTANTS.FINEST, scale) + (CONSTANTS.FINEST % scale != 0).to(tl.int32)
    total = tl.zeros(m_tile.shape, FORM.ACC)
    for place in tl.range(0, extent * extent, loop_unroll_factor=4):  # each waits for memory
        row = top + place // extent
        column = left + place % extent
        m_cells = m_tile & ((row < bottom) & (column < right))[:, None]
        p_cells = p_images + (row * CONSTANTS.FINEST + column).to(tl.int64)[:, None] * logits.stride_cell
        total += sum_splits(p_cells, m_cells, logits.stride_split, CONSTANTS, FORM)
    return total / ((bottom - top) * (right - left))[:, None]


@triton.jit
def sum_splits(p_cells, m_cells, stride_split, CONSTANTS: tl.constexpr, FORM: tl.constexpr):
    total = tl.load(p_cells, mask=m_cells, other=0.0).to(FORM.ACC)
    for split in tl.static_range(1, CONSTANTS.SPLITS):
        o_split = tl.full((), split, tl.int64) * stride_split
        total += tl.load(p_cells + o_split, mask=m_cells, other=0.0).to(FORM.ACC)
    return total


@triton.jit
def unnormalize_gradient_rows(
    p_logits, p_gradient, o_rows, m_rows, divisor, classes, FORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Turns gradients by normalised logits into gradients by the logits, in place; `o_rows` are the rows' starts.

    l2: dz = (dẑ - ẑ⟨ẑ, dẑ⟩)/‖z‖; zscore: dz = (dẑ - mean dẑ - ẑ mean(ẑ dẑ))/σ. A divisor at its floor is a constant.
    """
    if FORM.NORMALIZE != "none":
        along = tl.zeros(divisor.shape, FORM.ACC)
        mean = along
        tl.debug_barrier()
        for start in range(0, classes, BLOCK):
            o_tile = o_rows[:, None] + (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (start + tl.arange(0, BLOCK) < classes)[None, :]
            b_gradient = tl.load(p_gradient + o_tile, mask=m_tile, other=0.0)
            along += tl.sum(b_gradient * tl.load(p_logits + o_tile, mask=m_tile, other=0.0), axis=1)
            mean += tl.sum(b_gradient, axis=1)
        if FORM.NORMALIZE == "zscore":
            along = along / classes
            mean = mean / classes
        else:
            mean = mean * 0
        along = tl.where(divisor == NORM_FLOOR, 0.0, along)
        for start in range(0, classes, BLOCK):
            o_tile = o_rows[:, None] + (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (start + tl.arange(0, BLOCK) < classes)[None, :]
            b_gradient = tl.load(p_gradient + o_tile, mask=m_tile, other=0.0)
            b_logits = tl.load(p_logits + o_tile, mask=m_tile, other=0.0)
            b_gradient = (b_gradient - mean[:, None] - b_logits * along[:, None]) / divisor[:, None]
            tl.store(p_gradient + o_tile, b_gradient, mask=m_tile)
