"""Spatial Gram matrices of one tile: at most POINT_BLOCK cells of at most RESIDENT classes.

The stage waits for memory more than it computes, so both networks' logits of a scale are read once and kept as one tile
[POINT_BLOCK, RESIDENT]; every product of it is one `tl.dot`. Rows beyond the scale's cells and columns beyond the
classes are zero, or masked out of the Gram matrix.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import covers, window_start, window_stop
from icd_kernels.backends.triton.divergence import kl_terms
from icd_kernels.backends.triton.exponential import LN2, LOG2E, exp2
from icd_kernels.backends.triton.logits import along_of, divisor_of, sum_splits


@triton.jit
def resident_gram(
    student, teacher, student_division, teacher_division, work, image, first, scale, batch, temperature, factor,
    wants_gradient, FORM: tl.constexpr,
):  # fmt: skip
    """Loss of one image's Gram matrix of one scale; writes its gradient, times `factor`."""
    # One network after the other: registers hold one tile and its temporaries, not two.
    b_teacher = _load_logits(teacher, teacher_division, image, first, scale, batch, FORM.TEACHER_FINEST, FORM)
    b_teacher, _ = _normalized(b_teacher, scale, work.classes, FORM)
    teacher_gram = _gram(b_teacher, temperature, FORM)
    b_student = _load_logits(student, student_division, image, first, scale, batch, FORM.STUDENT_FINEST, FORM)
    b_student, divisor = _normalized(b_student, scale, work.classes, FORM)
    log_q, q = _softmax(_gram(b_student, temperature, FORM), scale, FORM)
    log_p, p = _softmax(teacher_gram, scale, FORM)
    m_gram = _is_cell(scale, FORM)[:, None] & _is_cell(scale, FORM)[None, :]
    loss = tl.sum(tl.where(m_gram, kl_terms(log_p, log_q, p, q), 0.0))
    if wants_gradient:
        difference = tl.where(m_gram, q - p, 0.0)
        mixed = (difference + tl.trans(difference)) * (factor / temperature)
        gradient = tl.dot(mixed, b_student, input_precision=FORM.PRECISION, out_dtype=FORM.ACC)
        gradient = _unnormalized(gradient, b_student, divisor, work.classes, FORM)
        o_cells = tl.arange(0, FORM.POINT_BLOCK)
        o_classes = tl.arange(0, FORM.RESIDENT)[None, :]
        p_gradient = work.p_gradient + (image.to(tl.int64) * FORM.CELLS + first) * work.pitch
        p_gradient += o_cells[:, None] * work.pitch + o_classes
        tl.store(p_gradient, gradient, mask=_is_cell(scale, FORM)[:, None] & (o_classes < work.pitch))
    return loss


@triton.jit
def _is_cell(scale, FORM: tl.constexpr):
    """Which rows of the tile are cells of the scale."""
    return tl.arange(0, FORM.POINT_BLOCK) < scale * scale


@triton.jit
def _load_logits(logits, division, image, first, scale, batch, FINEST: tl.constexpr, FORM: tl.constexpr):
    """Logits [CELLS, CLASSES] of one scale, 0 beyond its cells; means over the finest grid where it alone is stored."""
    o_cells = tl.arange(0, FORM.POINT_BLOCK)
    o_classes = tl.arange(0, FORM.RESIDENT)
    p_image = logits.p_logits + image.to(tl.int64) * logits.stride_image
    p_image += o_classes.to(tl.int64)[None, :] * logits.stride_class
    stored = scale * scale
    begin = first
    if FINEST > 0:
        stored = scale * 0 + FINEST * FINEST
        begin = first * 0
    m_tile = (o_cells < stored)[:, None] & (o_classes < logits.depth)[None, :]
    p_cells = p_image + (begin + o_cells).to(tl.int64)[:, None] * logits.stride_cell
    tile = sum_splits(p_cells, m_tile, logits, division, batch, FORM)
    if FINEST > 0:
        if scale < FINEST:
            tile = tl.dot(_shares(scale, FINEST, FORM), tile, input_precision=FORM.MEANS, out_dtype=FORM.ACC)
    return tile


@triton.jit
def _shares(scale, FINEST: tl.constexpr, FORM: tl.constexpr):
    """What each finest cell (column) counts in the mean of each cell of a scale (row), [CELLS, CELLS]."""
    o_cells = tl.arange(0, FORM.POINT_BLOCK)
    top = window_start(o_cells // scale, scale, FINEST)
    bottom = window_stop(o_cells // scale, scale, FINEST)
    left = window_start(o_cells % scale, scale, FINEST)
    right = window_stop(o_cells % scale, scale, FINEST)
    row = (o_cells // FINEST)[None, :]
    column = (o_cells % FINEST)[None, :]
    b_covers = covers(top[:, None], bottom[:, None], left[:, None], right[:, None], row, column)
    share = 1 / ((bottom - top) * (right - left)).to(FORM.ACC)
    return tl.where(b_covers & _is_cell(scale, FORM)[:, None], share[:, None], 0.0)


@triton.jit
def _normalized(tile, scale, classes, FORM: tl.constexpr):
    """Normalised rows, 0 where there is nothing, and what each row was divided by."""
    divisor = tl.full((FORM.POINT_BLOCK,), 1.0, FORM.ACC)
    if FORM.CENTRE > 0:
        m_tile = _is_cell(scale, FORM)[:, None] & (tl.arange(0, FORM.RESIDENT) < classes)[None, :]
        tile = tl.where(m_tile, tile - (tl.sum(tile, axis=1) / classes)[:, None], 0.0)
    if FORM.SPREAD > 0:
        largest = tl.max(tl.abs(tile), axis=1)
        largest = tl.where(largest > 0, largest, 1.0)  # squares of the logits themselves could overflow
        part = tile / largest[:, None]
        divisor = divisor_of(tl.sum(part * part, axis=1), largest, FORM)
        tile = tile / divisor[:, None]
    return tile, divisor


@triton.jit
def _gram(tile, temperature, FORM: tl.constexpr):
    """Inner products over τ of the tile's rows, [CELLS, CELLS]."""
    gram = tl.dot(tile, tl.trans(tile), input_precision=FORM.PRECISION, out_dtype=FORM.ACC)
    return gram / temperature


@triton.jit
def _softmax(gram, scale, FORM: tl.constexpr):
    """Log-probabilities and probabilities of rows; 0 outside the matrix."""
    m_gram = _is_cell(scale, FORM)[:, None] & _is_cell(scale, FORM)[None, :]
    highest = tl.max(tl.where(m_gram, gram, -float("inf")), axis=1)
    shifted = tl.where(m_gram, (gram - highest[:, None]) * LOG2E, 0.0)
    total = tl.sum(tl.where(m_gram, exp2(shifted, FORM.PTX), 0.0), axis=1)
    log_probability = shifted - tl.log2(tl.where(total > 0, total, total + 1.0))[:, None]
    return log_probability * LN2, exp2(log_probability, FORM.PTX)


@triton.jit
def _unnormalized(gradient, tile, divisor, classes, FORM: tl.constexpr):
    """The gradient by the logits from that by normalised ones (unnormalize_gradient_rows, in registers)."""
    if FORM.CENTRE + FORM.SPREAD > 0:
        along = along_of(tl.sum(gradient * tile, axis=1), divisor, FORM)
        if FORM.CENTRE > 0:
            gradient = gradient - (tl.sum(gradient, axis=1) / classes)[:, None]
            gradient = tl.where((tl.arange(0, FORM.RESIDENT) < classes)[None, :], gradient, 0.0)
        gradient = (gradient - tile * along[:, None]) / divisor[:, None]
    return gradient
