"""The class Gram summed exactly: every exponential of the K x K matrix z z^T, none of them stored.

Row k of the student's Gram over τ is x_k z with x_k = z_k/τ, so its maximum is at the largest z for x_k >= 0 and at the
smallest otherwise: no search, and every exponent is x_k (z_j - that z) <= 0. Loss and gradient need, of every row, its
normaliser and the means of z under its softmax, and of every column a sum over the finished rows (docs/definition.md).

A thread holds whole rows and walks over the columns, whose logits are the same for all threads: nothing is passed
between threads. x is in units of ln 2, so that exponentials are powers of two.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.divergence import has_close_rows, kl_terms
from icd_kernels.backends.triton.exponential import LN2, LOG2E, exp2

STEP: tl.constexpr = tl.constexpr(8)
"""Columns whose terms are added up by themselves: a long run of equal terms rounds the same way every time."""


@triton.jit
def exact_class(
    p_student, p_teacher, p_rows, p_gradient, student_low, student_high, teacher_low, teacher_high, classes, pitch,
    temperature, factor, wants_gradient, FORM: tl.constexpr,
):  # fmt: skip
    """Σ_k KL_k of one cell, whose extremes are given; writes its gradient times `factor`, 0 from K to `pitch`.

    Two passes of K² exponentials of both networks, one without a gradient.
    """
    loss = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    unit = tl.full((), LOG2E, FORM.ACC) / temperature
    for start in range(0, classes, FORM.CLASS_ROWS):
        o_rows = start + tl.arange(0, FORM.CLASS_ROWS)
        m_rows = o_rows < classes
        x_student, e_student = _row_points(p_student, o_rows, m_rows, student_low, student_high, unit)
        x_teacher, e_teacher = _row_points(p_teacher, o_rows, m_rows, teacher_low, teacher_high, unit)
        student_log, teacher_log, kl, gradient = _rows(
            p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM
        )
        if has_close_rows(kl, m_rows):
            kl = _divergences(
                p_student, p_teacher, x_student, e_student, student_log, x_teacher, e_teacher, teacher_log, classes,
                FORM,
            )  # fmt: skip
        loss += tl.where(m_rows, kl, 0.0)
        if wants_gradient:
            tl.store(p_rows + 2 * o_rows, student_log, mask=m_rows)
            tl.store(p_rows + 2 * o_rows + 1, teacher_log, mask=m_rows)
            tl.store(p_gradient + o_rows, tl.where(m_rows, gradient, 0.0), mask=o_rows < pitch)
    if wants_gradient:
        tl.debug_barrier()
        for start in range(0, classes, FORM.CLASS_ROWS):
            o_rows = start + tl.arange(0, FORM.CLASS_ROWS)
            m_rows = o_rows < classes
            gradient = tl.load(p_gradient + o_rows, mask=m_rows, other=0.0)
            gradient += _columns(
                p_student, p_teacher, p_rows, o_rows, m_rows, student_low, student_high, teacher_low, teacher_high,
                classes, unit, FORM,
            )  # fmt: skip
            tl.store(p_gradient + o_rows, gradient * (factor / temperature), mask=m_rows)
    return tl.sum(loss)


@triton.jit
def _row_points(p_logits, o_rows, m_rows, low, high, unit):
    """x of each row, and the z at which x z is largest."""
    x = tl.load(p_logits + o_rows, mask=m_rows, other=0.0) * unit
    return x, tl.where(x >= 0, high, low)


@triton.jit
def _rows(p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM: tl.constexpr):
    """Log normalisers (base 2) of rows, their KL, and the rows' part of the gradient, E_q[z_s] - E_p[z_s]."""
    zero = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    # Σ q and Σ p, and the sums of z_t - e_t under p, of z_s - e_s under p and under q.
    sums = (zero, zero, zero, zero, zero)
    whole = classes // STEP * STEP
    for start in range(0, whole, STEP):
        sums = _add_columns(
            sums, p_student + start, p_teacher + start, x_student, e_student, x_teacher, e_teacher, STEP, FORM
        )
    for start in range(whole, classes):
        sums = _add_columns(
            sums, p_student + start, p_teacher + start, x_student, e_student, x_teacher, e_teacher, 1, FORM
        )
    student_sum, teacher_sum, own, cross, mean = sums
    student_log = tl.log2(student_sum)
    teacher_log = tl.log2(teacher_sum)
    cross = cross / teacher_sum
    kl = (x_teacher * (own / teacher_sum) - teacher_log) - (x_student * cross - student_log)
    return student_log, teacher_log, kl * LN2, mean / student_sum - cross


@triton.jit
def _add_columns(
    sums, p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, COUNT: tl.constexpr, FORM: tl.constexpr
):
    """`sums` with those of COUNT columns."""
    zero = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    student_sum = zero
    teacher_sum = zero
    own = zero
    cross = zero
    mean = zero
    for column in tl.static_range(COUNT):
        student = tl.load(p_student + column) - e_student
        teacher = tl.load(p_teacher + column) - e_teacher
        q = exp2(x_student * student, FORM.FAST_EXP2)
        p = exp2(x_teacher * teacher, FORM.FAST_EXP2)
        student_sum += q
        teacher_sum += p
        own += p * teacher
        cross += p * student
        mean += q * student
    return sums[0] + student_sum, sums[1] + teacher_sum, sums[2] + own, sums[3] + cross, sums[4] + mean


@triton.jit
def _divergences(
    p_student, p_teacher, x_student, e_student, student_log, x_teacher, e_teacher, teacher_log, classes,
    FORM: tl.constexpr,
):  # fmt: skip
    """The KL of rows once more, term by term."""
    total = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    for column in range(classes):
        log_q = x_student * (tl.load(p_student + column) - e_student) - student_log
        log_p = x_teacher * (tl.load(p_teacher + column) - e_teacher) - teacher_log
        q = exp2(log_q, FORM.FAST_EXP2)
        p = exp2(log_p, FORM.FAST_EXP2)
        total += kl_terms(log_p * LN2, log_q * LN2, p, q)
    return total


@triton.jit
def _columns(
    p_student, p_teacher, p_rows, o_rows, m_rows, student_low, student_high, teacher_low, teacher_high, classes, unit,
    FORM: tl.constexpr,
):  # fmt: skip
    """The columns' part of the gradient of classes k: Σ_j z_s,j (q_jk - p_jk)."""
    student = tl.load(p_student + o_rows, mask=m_rows, other=0.0)
    teacher = tl.load(p_teacher + o_rows, mask=m_rows, other=0.0)
    total = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    ends = (student_low, student_high, teacher_low, teacher_high)
    whole = classes // STEP * STEP
    for start in range(0, whole, STEP):
        total += _some_columns(
            p_student + start, p_teacher + start, p_rows + 2 * start, student, teacher, ends, unit, STEP, FORM
        )
    for start in range(whole, classes):
        total += _some_columns(
            p_student + start, p_teacher + start, p_rows + 2 * start, student, teacher, ends, unit, 1, FORM
        )
    return total


@triton.jit
def _some_columns(p_student, p_teacher, p_rows, student, teacher, ends, unit, COUNT: tl.constexpr, FORM: tl.constexpr):
    """The part of COUNT rows j in :func:`_columns`."""
    student_low, student_high, teacher_low, teacher_high = ends
    total = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    for row in tl.static_range(COUNT):
        weight = tl.load(p_student + row)
        x_teacher = tl.load(p_teacher + row)
        e_student = tl.where(weight >= 0, student_high, student_low)
        e_teacher = tl.where(x_teacher >= 0, teacher_high, teacher_low)
        q = exp2(weight * unit * (student - e_student) - tl.load(p_rows + 2 * row), FORM.FAST_EXP2)
        p = exp2(x_teacher * unit * (teacher - e_teacher) - tl.load(p_rows + 2 * row + 1), FORM.FAST_EXP2)
        total += weight * (q - p)
    return total
