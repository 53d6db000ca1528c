"""Normalised logits of any cell from the stored ones: sum the splits, average the finest cells, divide by the norm."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import window_start, window_stop
from icd_kernels.backends.triton.tasks import wait_for

NORM_FLOOR: tl.constexpr = tl.constexpr(1e-12)  # that of icd_kernels/options.py; the tests compare them


@triton.jit
def wait_for_logits(logits, division, image):
    """Returns once the logits of `image` can be read.

    `division`: how the projection was divided: images of a group, parts of the channels, tasks of a group.
    """
    if logits.p_arrivals is not None:
        wait_for(logits.p_arrivals + image // division[0], division[2])


@triton.jit
def assemble_rows(
    logits, division, p_out, p_raw, o_images, o_local, m_rows, first, scale, batch, classes, pitch,
    FINEST: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Writes normalised logits (B, N, pitch) of cells `o_local` of one scale of `o_images`; returns their divisors.

    Also writes them as they were, (B, N, K), to `p_raw` unless that is None. BLOCK classes are assembled at a time,
    VECTOR normalised.
    """
    o_rows = (o_images.to(tl.int64) * FORM.CELLS + first + o_local)[:, None]
    total = tl.zeros(o_local.shape, FORM.ACC)
    largest = total
    for start in range(0, pitch, BLOCK):
        o_classes = start + tl.arange(0, BLOCK)
        m_depth = m_rows[:, None] & (o_classes < logits.depth)[None, :]
        b_logits = _load_cells(
            logits, division, o_images, o_local, first, scale, o_classes, m_depth, batch, FINEST, FORM
        )
        tl.store(p_out + o_rows * pitch + o_classes[None, :], b_logits, mask=m_rows[:, None] & (o_classes < pitch))
        if p_raw is not None:
            m_raw = m_rows[:, None] & (o_classes < classes)
            tl.store(p_raw + o_rows * classes + o_classes[None, :], b_logits, mask=m_raw)
        total += tl.sum(b_logits, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(b_logits), axis=1))
    tl.debug_barrier()
    return _normalize(p_out + o_rows * pitch, m_rows, total, largest, classes, pitch, FORM, VECTOR)


@triton.jit
def divisor_of(square, scale, FORM: tl.constexpr):
    """What a row is divided by, from the sum of its squares over `scale`²; NaN stays NaN."""
    divisor = scale * tl.sqrt(square) * tl.full((), FORM.SPREAD, FORM.ACC)
    return tl.where(divisor < NORM_FLOOR, NORM_FLOOR, divisor)


@triton.jit
def along_of(inner, divisor, FORM: tl.constexpr):
    """What a row's gradient loses for each unit of ẑ, from ⟨ẑ, dẑ⟩."""
    along = tl.zeros(divisor.shape, FORM.ACC)
    if FORM.SPREAD > 0:
        along = tl.where(divisor == NORM_FLOOR, 0.0, inner * tl.full((), FORM.SPREAD * FORM.SPREAD, FORM.ACC))
    return along


@triton.jit
def _normalize(p_rows, m_rows, total, largest, classes, pitch, FORM: tl.constexpr, BLOCK: tl.constexpr):
    mean = tl.zeros(total.shape, FORM.ACC)
    divisor = mean + 1
    if FORM.CENTRE > 0:
        mean = total / classes
    if FORM.SPREAD > 0:
        scale = largest + tl.abs(mean)  # squares of the logits themselves could overflow
        scale = tl.where(scale > 0, scale, 1.0)
        square = _squares(p_rows, m_rows, mean, scale, classes, BLOCK)
        divisor = divisor_of(square, scale, FORM)
    if FORM.CENTRE + FORM.SPREAD > 0:
        for start in range(0, pitch, BLOCK):
            o_classes = (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (o_classes < pitch)
            b_logits = tl.load(p_rows + o_classes, mask=m_tile, other=0.0)
            b_logits = tl.where(o_classes < classes, (b_logits - mean[:, None]) / divisor[:, None], 0.0)
            tl.store(p_rows + o_classes, b_logits, mask=m_tile)
        tl.debug_barrier()
    return divisor


@triton.jit
def _squares(p_rows, m_rows, mean, scale, classes, BLOCK: tl.constexpr):
    """Σ ((z - mean)/scale)² of each row."""
    square = mean * 0
    for start in range(0, classes, BLOCK):
        o_classes = (start + tl.arange(0, BLOCK))[None, :]
        m_tile = m_rows[:, None] & (o_classes < classes)
        b_centred = (tl.load(p_rows + o_classes, mask=m_tile, other=0.0) - mean[:, None]) / scale[:, None]
        square += tl.sum(tl.where(m_tile, b_centred * b_centred, 0.0), axis=1)
    return square


@triton.jit
def _load_cells(
    logits, division, o_images, o_local, first, scale, o_classes, m_tile, batch, FINEST: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """Logits [ROWS, CLASSES] of cells of one scale: means over the finest grid where only that is stored.

    Places of that grid and parts of the projection are added up in one loop: loops within loops multiply the time that
    the compiler takes.
    """
    p_images = logits.p_logits + o_images.to(tl.int64)[:, None] * logits.stride_image
    p_images += o_classes.to(tl.int64)[None, :] * logits.stride_class
    stride_split = logits.stride_image * (tl.full((), 0, tl.int64) + batch)
    top, bottom, left, right, extent = _finest_window(o_local, first, scale, FINEST)
    total = tl.zeros(m_tile.shape, FORM.ACC)
    for part in range(extent * extent * division[1]):
        place = part // division[1]
        row = top + place // extent
        column = left + place % extent
        m_cells = m_tile & ((row < bottom) & (column < right))[:, None]
        cell = (row * FINEST + column).to(tl.int64)[:, None]
        p_cells = p_images + cell * logits.stride_cell + (part % division[1]) * stride_split
        total += tl.load(p_cells, mask=m_cells, other=0.0).to(FORM.ACC)
    return total / ((bottom - top) * (right - left))[:, None]


@triton.jit
def _finest_window(o_local, first, scale, FINEST: tl.constexpr):
    """The window of the finest grid that cells are means over, and the most rows or columns of one; where every cell
    is stored (FINEST is 0) the cell itself, as a column of one row."""
    if FINEST == 0:
        top = o_local * 0
        bottom = top + 1
        left = first + o_local
        right = left + 1
        extent = scale * 0 + 1
    else:
        top = window_start(o_local // scale, scale, FINEST)
        bottom = window_stop(o_local // scale, scale, FINEST)
        left = window_start(o_local % scale, scale, FINEST)
        right = window_stop(o_local % scale, scale, FINEST)
        extent = tl.cdiv(FINEST, scale) + (FINEST % scale != 0).to(tl.int32)
    return top, bottom, left, right, extent


@triton.jit
def sum_splits(p_cells, m_cells, logits, division, batch, FORM: tl.constexpr):
    """The parts of the projection added up in order, one after another: a tile of each would fill the registers."""
    stride_split = logits.stride_image * (tl.full((), 0, tl.int64) + batch)
    total = tl.zeros(m_cells.shape, FORM.ACC)
    for split in range(division[1]):
        total += tl.load(p_cells + split * stride_split, mask=m_cells, other=0.0).to(FORM.ACC)
    return total


@triton.jit
def unnormalize_gradient_rows(
    p_logits, p_gradient, o_rows, m_rows, divisor, classes, FORM: tl.constexpr, BLOCK: tl.constexpr
):
    """Turns gradients by normalised logits into gradients by the logits, in place; `o_rows` are the rows' starts.

    dz = (dẑ - CENTRE mean(dẑ) - SPREAD² ẑ⟨ẑ, dẑ⟩)/divisor. A divisor at its floor is a constant.
    """
    if FORM.CENTRE + FORM.SPREAD > 0:
        along = tl.zeros(divisor.shape, FORM.ACC)
        mean = along
        tl.debug_barrier()
        for start in range(0, classes, BLOCK):
            o_tile = o_rows[:, None] + (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (start + tl.arange(0, BLOCK) < classes)[None, :]
            b_gradient = tl.load(p_gradient + o_tile, mask=m_tile, other=0.0)
            along += tl.sum(b_gradient * tl.load(p_logits + o_tile, mask=m_tile, other=0.0), axis=1)
            mean += tl.sum(b_gradient, axis=1)
        mean = mean / classes if FORM.CENTRE > 0 else tl.zeros(divisor.shape, FORM.ACC)
        along = along_of(along, divisor, FORM)
        for start in range(0, classes, BLOCK):
            o_tile = o_rows[:, None] + (start + tl.arange(0, BLOCK))[None, :]
            m_tile = m_rows[:, None] & (start + tl.arange(0, BLOCK) < classes)[None, :]
            b_gradient = tl.load(p_gradient + o_tile, mask=m_tile, other=0.0)
            b_logits = tl.load(p_logits + o_tile, mask=m_tile, other=0.0)
            b_gradient = (b_gradient - mean[:, None] - b_logits * along[:, None]) / divisor[:, None]
            tl.store(p_gradient + o_tile, b_gradient, mask=m_tile)
