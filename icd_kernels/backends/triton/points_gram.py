"""Gram matrices between vectors: cells of one image and scale (spatial), images at one cell (sample).

Rows are vectors of K normalised logits a fixed stride apart. Tiles of the Gram matrices are matrix products; a row's
maximum and sums are collected tile by tile, rescaled when the maximum moves, so no row is ever stored.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.divergence import has_close_rows, kl_terms


@triton.jit
def point_losses(
    p_student, p_teacher, p_rows, stride_rows, block, count, stride, classes, temperature, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    """KL of a block of rows; writes their maxima and log normalisers (student's, then teacher's) to `p_rows`."""
    o_rows = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
    student_max = tl.full((FORM.POINT_BLOCK,), -float("inf"), FORM.ACC)
    teacher_max = student_max
    student_sum = tl.zeros((FORM.POINT_BLOCK,), FORM.ACC)
    teacher_sum = student_sum
    teacher_mean = student_sum  # of the teacher's entries, less their maximum, under p
    cross_mean = student_sum  # of the student's
    for start in range(0, count, FORM.POINT_BLOCK):
        o_columns = start + tl.arange(0, FORM.POINT_BLOCK)
        m_columns = (o_columns < count)[None, :]
        student = _gram_tile(p_student, o_rows, o_columns, count, stride, classes, temperature, FORM)
        teacher = _gram_tile(p_teacher, o_rows, o_columns, count, stride, classes, temperature, FORM)
        student_new = tl.maximum(student_max, tl.max(tl.where(m_columns, student, -float("inf")), axis=1))
        teacher_new = tl.maximum(teacher_max, tl.max(tl.where(m_columns, teacher, -float("inf")), axis=1))
        student = tl.where(m_columns, student - student_new[:, None], 0.0)
        teacher = tl.where(m_columns, teacher - teacher_new[:, None], 0.0)
        q = tl.where(m_columns, tl.exp(student), 0.0)
        p = tl.where(m_columns, tl.exp(teacher), 0.0)

        is_first = o_rows * 0 + start == 0
        student_shift = tl.where(is_first, 0.0, student_max - student_new)
        teacher_shift = tl.where(is_first, 0.0, teacher_max - teacher_new)
        rescale = tl.exp(teacher_shift)
        teacher_mean = (teacher_mean + teacher_sum * teacher_shift) * rescale + tl.sum(p * teacher, axis=1)
        cross_mean = (cross_mean + teacher_sum * student_shift) * rescale + tl.sum(p * student, axis=1)
        teacher_sum = teacher_sum * rescale + tl.sum(p, axis=1)
        student_sum = student_sum * tl.exp(student_shift) + tl.sum(q, axis=1)
        student_max = student_new
        teacher_max = teacher_new
    student_log = tl.log(student_sum)
    teacher_log = tl.log(teacher_sum)
    if wants_gradient:
        p_block = p_rows + o_rows.to(tl.int64) * stride_rows
        tl.store(p_block, student_max, mask=o_rows < count)
        tl.store(p_block + 1, student_log, mask=o_rows < count)
        tl.store(p_block + 2, teacher_max, mask=o_rows < count)
        tl.store(p_block + 3, teacher_log, mask=o_rows < count)
    kl = (teacher_mean / teacher_sum - teacher_log) - (cross_mean / teacher_sum - student_log)
    if has_close_rows(kl, o_rows < count):
        kl = _divergences(
            p_student, p_teacher, o_rows, student_max, student_log, teacher_max, teacher_log, count, stride, classes,
            temperature, FORM,
        )  # fmt: skip
    return kl


@triton.jit
def _divergences(
    p_student, p_teacher, o_rows, student_max, student_log, teacher_max, teacher_log, count, stride, classes,
    temperature, FORM: tl.constexpr,
):  # fmt: skip
    """The KL of a block of rows once more, term by term."""
    kl = tl.zeros((FORM.POINT_BLOCK,), FORM.ACC)
    for start in range(0, count, FORM.POINT_BLOCK):
        o_columns = start + tl.arange(0, FORM.POINT_BLOCK)
        log_q = _gram_tile(p_student, o_rows, o_columns, count, stride, classes, temperature, FORM)
        log_p = _gram_tile(p_teacher, o_rows, o_columns, count, stride, classes, temperature, FORM)
        log_q = (log_q - student_max[:, None]) - student_log[:, None]
        log_p = (log_p - teacher_max[:, None]) - teacher_log[:, None]
        terms = kl_terms(log_p, log_q, tl.exp(log_p), tl.exp(log_q))
        kl += tl.sum(tl.where((o_columns < count)[None, :], terms, 0.0), axis=1)
    return kl


@triton.jit
def point_gradient(
    p_student, p_teacher, p_rows, stride_rows, p_gradient, p_upstream, stride_upstream, block, count, stride, classes,
    temperature, factor, FORM: tl.constexpr,
):  # fmt: skip
    """Writes the gradient by a block of rows, dẐ = (D + D^T) Ẑ/τ times `factor`, rows of D times their upstream."""
    o_rows = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
    m_rows = (o_rows < count)[:, None]
    student_max, student_log, teacher_max, teacher_log = _load_rows(p_rows, stride_rows, o_rows, count)
    upstream = _load_upstream(p_upstream, stride_upstream, o_rows, count, FORM)
    for start in range(0, count, FORM.POINT_BLOCK):
        o_columns = start + tl.arange(0, FORM.POINT_BLOCK)
        m_columns = (o_columns < count)[None, :]
        student = _gram_tile(p_student, o_rows, o_columns, count, stride, classes, temperature, FORM)
        teacher = _gram_tile(p_teacher, o_rows, o_columns, count, stride, classes, temperature, FORM)
        difference = tl.exp(student - student_max[:, None] - student_log[:, None])
        difference -= tl.exp(teacher - teacher_max[:, None] - teacher_log[:, None])
        mixed = difference * upstream[:, None]
        # The Gram matrix is symmetric: the same tile, with the columns' normalisers, is that of D^T.
        column_max, column_log, teacher_column_max, teacher_column_log = _load_rows(
            p_rows, stride_rows, o_columns, count
        )
        difference = tl.exp(student - column_max[None, :] - column_log[None, :])
        difference -= tl.exp(teacher - teacher_column_max[None, :] - teacher_column_log[None, :])
        mixed += difference * _load_upstream(p_upstream, stride_upstream, o_columns, count, FORM)[None, :]
        mixed = tl.where(m_rows & m_columns, mixed * (factor / temperature), 0.0)
        _add_product(mixed, p_student, p_gradient, o_rows, o_columns, start, count, stride, classes, FORM)
        tl.debug_barrier()


@triton.jit
def _add_product(mixed, p_student, p_gradient, o_rows, o_columns, first, count, stride, classes, FORM: tl.constexpr):
    """Adds mixed [BLOCK, BLOCK] times the columns' logits to the gradient of the rows (sets it for the first ones)."""
    for start in range(0, classes, FORM.POINT_DEPTH):
        o_classes = start + tl.arange(0, FORM.POINT_DEPTH)
        m_classes = (o_classes < classes)[None, :]
        o_logits = o_columns.to(tl.int64)[:, None] * stride + o_classes[None, :]
        b_logits = tl.load(p_student + o_logits, mask=(o_columns < count)[:, None] & m_classes, other=0.0)
        o_out = o_rows.to(tl.int64)[:, None] * stride + o_classes[None, :]
        m_out = (o_rows < count)[:, None] & m_classes
        m_before = m_out & (o_rows * 0 + first > 0)[:, None]
        total = tl.load(p_gradient + o_out, mask=m_before, other=0.0)
        total = tl.dot(mixed, b_logits, total, input_precision=FORM.PRECISION, out_dtype=FORM.ACC)
        tl.store(p_gradient + o_out, total, mask=m_out)


@triton.jit
def _gram_tile(p_logits, o_rows, o_columns, count, stride, classes, temperature, FORM: tl.constexpr):
    """Inner products over τ of two blocks of rows, [BLOCK, BLOCK]."""
    gram = tl.zeros((FORM.POINT_BLOCK, FORM.POINT_BLOCK), FORM.ACC)
    p_rows = p_logits + o_rows.to(tl.int64)[:, None] * stride
    p_columns = p_logits + o_columns.to(tl.int64)[None, :] * stride
    for start in range(0, classes, FORM.POINT_DEPTH):
        o_classes = start + tl.arange(0, FORM.POINT_DEPTH)
        m_classes = o_classes < classes
        m_left = (o_rows < count)[:, None] & m_classes[None, :]
        m_right = (o_columns < count)[None, :] & m_classes[:, None]
        left = tl.load(p_rows + o_classes[None, :], mask=m_left, other=0.0)
        right = tl.load(p_columns + o_classes[:, None], mask=m_right, other=0.0)
        gram = tl.dot(left, right, gram, input_precision=FORM.PRECISION, out_dtype=FORM.ACC)
    return gram / temperature


@triton.jit
def _load_rows(p_rows, stride_rows, o_rows, count):
    """Student's maximum and log normaliser, then the teacher's, of rows."""
    p_block = p_rows + o_rows.to(tl.int64) * stride_rows
    student_max = tl.load(p_block, mask=o_rows < count, other=0.0)
    student_log = tl.load(p_block + 1, mask=o_rows < count, other=0.0)
    teacher_max = tl.load(p_block + 2, mask=o_rows < count, other=0.0)
    teacher_log = tl.load(p_block + 3, mask=o_rows < count, other=0.0)
    return student_max, student_log, teacher_max, teacher_log


@triton.jit
def _load_upstream(p_upstream, stride_upstream, o_rows, count, FORM: tl.constexpr):
    if p_upstream is None:
        upstream = tl.full((FORM.POINT_BLOCK,), 1.0, FORM.ACC)
    else:
        p_block = p_upstream + o_rows.to(tl.int64) * stride_upstream
        upstream = tl.load(p_block, mask=o_rows < count, other=0.0).to(FORM.ACC)
    return upstream
