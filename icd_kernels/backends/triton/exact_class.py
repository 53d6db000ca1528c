"""The class Gram summed exactly: every exponential of the K x K matrix z z^T, none of them stored.

Row k of the student's Gram over τ is x_k z with x_k = z_k/τ, so its maximum is at the largest z for x_k >= 0 and at the
smallest otherwise: no search, and every exponent is x_k (z_j - that z) <= 0. Loss and gradient need, of every row, its
normaliser and the means of z under its softmax, and of every column a sum over the finished rows (docs/definition.md).

A thread holds whole rows and walks over the columns, whose logits are the same for all threads: nothing is passed
between threads. x is in units of ln 2, so that exponentials are powers of two.

What columns need of rows is kept in the workspace, ROW_VALUES numbers of each. Let a_j be the rounded product of x_j
and the z at which row j is largest. Then 2^(x_j z_k - a_j) takes one fused multiply-add, which keeps its digits
wherever it is not negligible. What the rounding of a_j left out goes into the row's weight, as its normaliser does.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.divergence import has_close_rows, kl_terms
from icd_kernels.backends.triton.exponential import LN2, LOG2E, exp2, load_4, multiply_add, power_of_two

ROW_VALUES: tl.constexpr = tl.constexpr(6)
"""Numbers kept of a row: x, -a and the weight, of the student and of the teacher."""
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
        student_sum, teacher_sum, kl, gradient = _rows(
            p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM
        )
        if has_close_rows(kl, m_rows):
            kl = _divergences(
                p_student, p_teacher, x_student, e_student, student_sum, x_teacher, e_teacher, teacher_sum, classes,
                FORM,
            )  # fmt: skip
        loss += tl.where(m_rows, kl, 0.0)
        if wants_gradient:
            student = tl.load(p_student + o_rows, mask=m_rows, other=0.0)
            m_pitch = o_rows < pitch
            _keep_rows(p_rows + o_rows, pitch, m_pitch, x_student, e_student, student / student_sum)
            _keep_rows(p_rows + 3 * pitch + o_rows, pitch, m_pitch, x_teacher, e_teacher, -student / teacher_sum)
            tl.store(p_gradient + o_rows, tl.where(m_rows, gradient, 0.0), mask=m_pitch)
    if wants_gradient:
        tl.debug_barrier()
        for start in range(0, classes, FORM.CLASS_ROWS):
            o_rows = start + tl.arange(0, FORM.CLASS_ROWS)
            m_rows = o_rows < classes
            gradient = tl.load(p_gradient + o_rows, mask=m_rows, other=0.0)
            student = tl.load(p_student + o_rows, mask=m_rows, other=0.0)
            teacher = tl.load(p_teacher + o_rows, mask=m_rows, other=0.0)
            gradient += _columns(p_rows, student, teacher, classes, pitch, FORM)
            tl.store(p_gradient + o_rows, gradient * (factor / temperature), mask=m_rows)
    return tl.sum(loss)


@triton.jit
def _row_points(p_logits, o_rows, m_rows, low, high, unit):
    """x of each row, and the z at which x z is largest."""
    x = tl.load(p_logits + o_rows, mask=m_rows, other=0.0) * unit
    return x, tl.where(x >= 0, high, low)


@triton.jit
def _keep_rows(p_values, pitch, m_pitch, x, e, share):
    """Writes what columns need of rows of one network: x, -a, and the weight, `share` without the rounding of a.

    The rounding of a huge a alone would overflow 2^x. There every entry but the row's largest is 0, by half of x too;
    x is rounded to a power of two, and a is exact. Rows from K to `pitch` have x = 0 and weight 0, so that columns go
    on in whole steps.
    """
    # Below this a is rounded by at most 2^5; from here on the exponents of different z lie at least 2^5 apart.
    huge = 2.0**30 if x.dtype == tl.float32 else 2.0**59
    x = tl.where(tl.abs(x * e) < huge, x, power_of_two(x))
    a = x * e
    tl.store(p_values, x, mask=m_pitch)
    tl.store(p_values + pitch, -a, mask=m_pitch)
    tl.store(p_values + 2 * pitch, share * tl.exp2(-multiply_add(x, e, -a)), mask=m_pitch)


@triton.jit
def _rows(p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM: tl.constexpr):
    """Normalisers of rows, their KL, and the rows' part of the gradient, E_q[z_s] - E_p[z_s]."""
    zero = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    # Σ q and Σ p, and the sums of z_t - e_t under p, of z_s - e_s under p and under q.
    sums = (zero, zero, zero, zero, zero)
    whole = classes // STEP * STEP
    for start in range(0, whole, STEP):
        some = (zero, zero, zero, zero, zero)
        for quarter in tl.static_range(0, STEP, 4):
            students = load_4(p_student + start + quarter, FORM.PTX)
            teachers = load_4(p_teacher + start + quarter, FORM.PTX)
            for column in tl.static_range(4):
                some = _with_column(
                    some, students[column], teachers[column], x_student, e_student, x_teacher, e_teacher, FORM
                )
        sums = _added(sums, some)
    for column in range(whole, classes):
        sums = _with_column(
            sums, tl.load(p_student + column), tl.load(p_teacher + column), x_student, e_student, x_teacher, e_teacher,
            FORM,
        )  # fmt: skip
    student_sum, teacher_sum, own, cross, mean = sums
    cross = cross / teacher_sum
    kl = (x_teacher * (own / teacher_sum) - tl.log2(teacher_sum)) - (x_student * cross - tl.log2(student_sum))
    return student_sum, teacher_sum, kl * LN2, mean / student_sum - cross


@triton.jit
def _with_column(sums, student, teacher, x_student, e_student, x_teacher, e_teacher, FORM: tl.constexpr):
    """`sums` with the terms of one column, whose logits are given."""
    student_sum, teacher_sum, own, cross, mean = sums
    student -= e_student
    teacher -= e_teacher
    q = exp2(x_student * student, FORM.PTX)
    p = exp2(x_teacher * teacher, FORM.PTX)
    return student_sum + q, teacher_sum + p, own + p * teacher, cross + p * student, mean + q * student


@triton.jit
def _added(sums, others):
    """Five sums and five others."""
    return (
        sums[0] + others[0], sums[1] + others[1], sums[2] + others[2], sums[3] + others[3], sums[4] + others[4]
    )  # fmt: skip


@triton.jit
def _divergences(
    p_student, p_teacher, x_student, e_student, student_sum, x_teacher, e_teacher, teacher_sum, classes,
    FORM: tl.constexpr,
):  # fmt: skip
    """The KL of rows once more, term by term."""
    student_log = tl.log2(student_sum)
    teacher_log = tl.log2(teacher_sum)
    total = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    for column in range(classes):
        log_q = x_student * (tl.load(p_student + column) - e_student) - student_log
        log_p = x_teacher * (tl.load(p_teacher + column) - e_teacher) - teacher_log
        q = exp2(log_q, FORM.PTX)
        p = exp2(log_p, FORM.PTX)
        total += kl_terms(log_p * LN2, log_q * LN2, p, q)
    return total


@triton.jit
def _columns(p_rows, student, teacher, classes, pitch, FORM: tl.constexpr):
    """The columns' part of the gradient of classes k, whose logits are given: Σ_j z_s,j (q_jk - p_jk)."""
    total = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    for start in range(0, classes, STEP):
        part = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
        for quarter in tl.static_range(0, STEP, 4):
            part = _four_rows(part, p_rows + start + quarter, student, teacher, pitch, FORM)
        total += part
    return total


@triton.jit
def _four_rows(part, p_values, student, teacher, pitch, FORM: tl.constexpr):
    """`part` with the terms of four rows j, whose values :func:`_keep_rows` wrote."""
    x_student = load_4(p_values, FORM.PTX)
    a_student = load_4(p_values + pitch, FORM.PTX)
    student_weight = load_4(p_values + 2 * pitch, FORM.PTX)
    x_teacher = load_4(p_values + 3 * pitch, FORM.PTX)
    a_teacher = load_4(p_values + 4 * pitch, FORM.PTX)
    teacher_weight = load_4(p_values + 5 * pitch, FORM.PTX)
    for row in tl.static_range(4):
        q = exp2(multiply_add(x_student[row], student, a_student[row]), FORM.PTX)
        p = exp2(multiply_add(x_teacher[row], teacher, a_teacher[row]), FORM.PTX)
        part = multiply_add(q, student_weight[row], part)
        part = multiply_add(p, teacher_weight[row], part)
    return part
