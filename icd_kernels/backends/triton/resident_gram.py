"""Spatial Gram matrices small enough to stay in registers: at most PAIR_BLOCK cells of at most RESIDENT classes.

The stage waits for memory more than it computes, so both networks' logits of a scale are read once and kept as one tile
[PAIR_BLOCK, RESIDENT]. A row that all rows are multiplied with is read back, one after another: products of so few
rows are cheaper than the shuffling that tensor cores would need.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import window_start, window_stop
from icd_kernels.backends.triton.divergence import kl_terms
from icd_kernels.backends.triton.logits import NORM_FLOOR, sum_splits


@triton.jit
def resident_gram(student, teacher, work, image, first, scale, classes, temperature, factor, FORM: tl.constexpr):
    """Loss of one image's Gram matrix of one scale; writes its gradient, times `factor`."""
    count = scale * scale
    o_cells = tl.arange(0, FORM.PAIR_BLOCK)
    o_classes = tl.arange(0, FORM.RESIDENT)
    m_tile = (o_cells < count)[:, None] & (o_classes < classes)[None, :]
    start = (image.to(tl.int64) * FORM.CELLS + first) * classes
    o_tile = o_cells[:, None] * classes + o_classes[None, :]

    # One network after the other: registers hold one tile and its temporaries, not two.
    b_teacher = _load_logits(teacher, image, first, scale, o_cells, o_classes, classes, FORM.TEACHER, FORM)
    b_teacher, _ = _normalized(b_teacher, m_tile, classes, FORM)
    p_teacher = work.p_teacher + start
    tl.store(p_teacher + o_tile, b_teacher, mask=m_tile)
    tl.debug_barrier()
    teacher_gram = _gram(b_teacher, p_teacher, count, classes, temperature, FORM)
    p_student = work.p_student + start
    b_student = _load_logits(student, image, first, scale, o_cells, o_classes, classes, FORM.STUDENT, FORM)
    b_student, divisor = _normalized(b_student, m_tile, classes, FORM)
    tl.store(p_student + o_tile, b_student, mask=m_tile)
    tl.debug_barrier()
    student_gram = _gram(b_student, p_student, count, classes, temperature, FORM)

    m_gram = (o_cells < count)[:, None] & (o_cells < count)[None, :]
    log_q, q = _softmax(student_gram, m_gram)
    log_p, p = _softmax(teacher_gram, m_gram)
    loss = tl.sum(tl.where(m_gram, kl_terms(log_p, log_q, p, q), 0.0))
    if FORM.GRADIENT:
        difference = tl.where(m_gram, q - p, 0.0)
        mixed = (difference + tl.trans(difference)) * (factor / temperature)
        gradient = _times_rows(mixed, p_student, count, classes, FORM)
        gradient = _unnormalized(gradient, b_student, divisor, classes, FORM)
        # Not o_tile and m_tile, which would hold registers until here.
        p_gradient = work.p_gradient + start + o_cells.to(tl.int64)[:, None] * classes
        m_gradient = (o_cells < count)[:, None] & (o_classes < classes)[None, :]
        tl.store(p_gradient + o_classes[None, :], gradient, mask=m_gradient)
    return loss


@triton.jit
def _load_logits(logits, image, first, scale, o_cells, o_classes, classes, CONSTANTS: tl.constexpr, FORM: tl.constexpr):
    """Logits [CELLS, CLASSES] of one scale, 0 beyond its cells; means over the finest grid where it alone is stored."""
    m_classes = (o_classes < classes)[None, :]
    p_image = logits.p_logits + image.to(tl.int64) * logits.stride_image
    p_image += o_classes.to(tl.int64)[None, :] * logits.stride_class
    stored = scale * scale
    begin = first
    if CONSTANTS.FINEST > 0:
        stored = scale * 0 + CONSTANTS.FINEST * CONSTANTS.FINEST
        begin = first * 0
    m_tile = (o_cells < stored)[:, None] & m_classes
    p_cells = p_image + (begin + o_cells).to(tl.int64)[:, None] * logits.stride_cell
    tile = sum_splits(p_cells, m_tile, logits.stride_split, CONSTANTS, FORM)
    if CONSTANTS.FINEST > 0:
        if scale < CONSTANTS.FINEST:
            tile = _means(tile, scale, o_cells, CONSTANTS, FORM)
    return tile


@triton.jit
def _means(finest, scale, o_cells, CONSTANTS: tl.constexpr, FORM: tl.constexpr):
    """Rows that are the means of the finest cells they cover."""
    row = o_cells // CONSTANTS.FINEST
    column = o_cells % CONSTANTS.FINEST
    tile = tl.zeros((FORM.PAIR_BLOCK, FORM.RESIDENT), FORM.ACC)
    for cell in range(scale * scale):
        top = window_start(cell // scale, scale, CONSTANTS.FINEST)
        bottom = window_stop(cell // scale, scale, CONSTANTS.FINEST)
        left = window_start(cell % scale, scale, CONSTANTS.FINEST)
        right = window_stop(cell % scale, scale, CONSTANTS.FINEST)
        m_covered = (row >= top) & (row < bottom) & (column >= left) & (column < right)
        mean = tl.sum(tl.where(m_covered[:, None], finest, 0.0), axis=0) / ((bottom - top) * (right - left))
        tile = tl.where((o_cells == cell)[:, None], mean[None, :], tile)
    return tile


@triton.jit
def _normalized(tile, m_tile, classes, FORM: tl.constexpr):
    """Normalised rows, 0 where there is nothing, and what each row was divided by."""
    divisor = tl.full((FORM.PAIR_BLOCK,), 1.0, FORM.ACC)
    if FORM.NORMALIZE == "zscore":
        tile = tl.where(m_tile, tile - (tl.sum(tile, axis=1) / classes)[:, None], 0.0)
        divisor = tl.sqrt(tl.sum(tile * tile, axis=1) / classes)
    elif FORM.NORMALIZE == "l2":
        divisor = tl.sqrt(tl.sum(tile * tile, axis=1))
    divisor = tl.where(divisor < NORM_FLOOR, NORM_FLOOR, divisor)
    if FORM.NORMALIZE != "none":
        tile = tile / divisor[:, None]
    return tile, divisor


@triton.jit
def _gram(tile, p_rows, count, classes, temperature, FORM: tl.constexpr):
    """Inner products over τ of the tile's rows with the `count` rows at `p_rows`, [CELLS, CELLS]."""
    o_cells = tl.arange(0, FORM.PAIR_BLOCK)
    o_classes = tl.arange(0, FORM.RESIDENT)
    gram = tl.zeros((FORM.PAIR_BLOCK, FORM.PAIR_BLOCK), FORM.ACC)
    for cell in tl.range(0, count, loop_unroll_factor=2):
        row = tl.load(p_rows + cell * classes + o_classes, mask=o_classes < classes, other=0.0)
        column = tl.sum(tile * row[None, :], axis=1)
        gram = tl.where((o_cells == cell)[None, :], column[:, None], gram)
    return gram / temperature


@triton.jit
def _times_rows(mixed, p_rows, count, classes, FORM: tl.constexpr):
    """mixed [CELLS, CELLS] times the rows at `p_rows`, [CELLS, CLASSES]."""
    o_cells = tl.arange(0, FORM.PAIR_BLOCK)
    o_classes = tl.arange(0, FORM.RESIDENT)
    product = tl.zeros((FORM.PAIR_BLOCK, FORM.RESIDENT), FORM.ACC)
    for cell in tl.range(0, count, loop_unroll_factor=2):
        row = tl.load(p_rows + cell * classes + o_classes, mask=o_classes < classes, other=0.0)
        column = tl.sum(tl.where((o_cells == cell)[None, :], mixed, 0.0), axis=1)
        product += column[:, None] * row[None, :]
    return product


@triton.jit
def _softmax(gram, m_gram):
    """Log-probabilities and probabilities of rows; 0 outside the matrix."""
    highest = tl.max(tl.where(m_gram, gram, -float("inf")), axis=1)
    shifted = tl.where(m_gram, gram - highest[:, None], 0.0)
    total = tl.sum(tl.where(m_gram, tl.exp(shifted), 0.0), axis=1)
    log_probability = shifted - tl.log(tl.where(total > 0, total, total + 1.0))[:, None]
    return log_probability, tl.exp(log_probability)


@triton.jit
def _unnormalized(gradient, tile, divisor, classes, FORM: tl.constexpr):
    """The gradient by the logits from that by normalised ones (unnormalize_gradient_rows, in registers)."""
    if FORM.NORMALIZE != "none":
        along = tl.sum(gradient * tile, axis=1)
        if FORM.NORMALIZE == "zscore":
            along = along / classes
            gradient = gradient - (tl.sum(gradient, axis=1) / classes)[:, None]
        along = tl.where(divisor == NORM_FLOOR, 0.0, along)
        gradient = (gradient - tile * along[:, None]) / divisor[:, None]
    return gradient
