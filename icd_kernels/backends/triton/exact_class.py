"""The class Gram summed exactly: every exponential of the K x K matrix z z^T, none of them stored.

Row k of the student's Gram over τ is x_k z with x_k = z_k/τ, so its maximum is at the largest z for x_k >= 0 and at the
smallest otherwise: no search, and every exponent is x_k (z_j - that z) <= 0. Loss and gradient need, of every row, its
normaliser and the means of z under its softmax, and of every column a sum over the finished rows (docs/definition.md).
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.divergence import has_close_rows, kl_terms


@triton.jit
def exact_class(
    p_student, p_teacher, p_rows, p_gradient, student_low, student_high, teacher_low, teacher_high, classes,
    temperature, factor, FORM: tl.constexpr,
):  # fmt: skip
    """Σ_k KL_k of one cell, whose extremes are given; writes its gradient times `factor`.

    Two passes of K² exponentials of both networks, one without a gradient.
    """
    loss = tl.zeros((FORM.CLASS_ROWS,), FORM.ACC)
    for start in range(0, classes, FORM.CLASS_ROWS):
        o_rows = start + tl.arange(0, FORM.CLASS_ROWS)
        m_rows = o_rows < classes
        x_student, e_student = _row_points(p_student, o_rows, m_rows, student_low, student_high, temperature)
        x_teacher, e_teacher = _row_points(p_teacher, o_rows, m_rows, teacher_low, teacher_high, temperature)
        student_log, teacher_log, kl, gradient = _rows(
            p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM
        )
        if has_close_rows(kl, m_rows):
            kl = _divergences(
                p_student,
                p_teacher,
                x_student,
                e_student,
                student_log,
                x_teacher,
                e_teacher,
                teacher_log,
                classes,
                FORM,
            )
        loss += tl.where(m_rows, kl, 0.0)
        if FORM.GRADIENT:
            tl.store(p_rows + o_rows, student_log, mask=m_rows)
            tl.store(p_rows + classes + o_rows, teacher_log, mask=m_rows)
            tl.store(p_gradient + o_rows, gradient, mask=m_rows)
    if FORM.GRADIENT:
        tl.debug_barrier()
        for start in range(0, classes, FORM.CLASS_ROWS):
            o_rows = start + tl.arange(0, FORM.CLASS_ROWS)
            m_rows = o_rows < classes
            gradient = tl.load(p_gradient + o_rows, mask=m_rows, other=0.0)
            b_student = tl.load(p_student + o_rows, mask=m_rows, other=0.0)
            b_teacher = tl.load(p_teacher + o_rows, mask=m_rows, other=0.0)
            gradient += _columns(
                p_student, p_teacher, p_rows, b_student, b_teacher, student_low, student_high, teacher_low,
                teacher_high, classes, temperature, FORM,
            )  # fmt: skip
            tl.store(p_gradient + o_rows, gradient * (factor / temperature), mask=m_rows)
    return tl.sum(loss)


@triton.jit
def _row_points(p_logits, o_rows, m_rows, low, high, temperature):
    """x of each row, and the z at which x z is largest."""
    x = tl.load(p_logits + o_rows, mask=m_rows, other=0.0) / temperature
    return x, tl.where(x >= 0, high, low)


@triton.jit
def _rows(p_student, p_teacher, x_student, e_student, x_teacher, e_teacher, classes, FORM: tl.constexpr):
    """Log normalisers of a block of rows, their KL, and the rows' part of the gradient, E_q[z_s] - E_p[z_s]."""
    student_sum = tl.zeros((FORM.CLASS_ROWS, FORM.CLASS_COLUMNS), FORM.ACC)
    teacher_sum = student_sum
    teacher_mean = student_sum  # of z_t - e_t under p
    cross_mean = student_sum  # of z_s - e_s under p
    student_mean = student_sum  # of z_s - e_s under q
    for start in range(0, classes, FORM.CLASS_COLUMNS):
        o_columns = start + tl.arange(0, FORM.CLASS_COLUMNS)
        m_columns = o_columns < classes
        b_student = tl.load(p_student + o_columns, mask=m_columns, other=0.0)
        b_teacher = tl.load(p_teacher + o_columns, mask=m_columns, other=0.0)
        student = b_student[None, :] - e_student[:, None]
        teacher = b_teacher[None, :] - e_teacher[:, None]
        q = tl.where(m_columns[None, :], tl.exp(x_student[:, None] * student), 0.0)
        p = tl.where(m_columns[None, :], tl.exp(x_teacher[:, None] * teacher), 0.0)
        student_sum += q
        teacher_sum += p
        teacher_mean += p * teacher
        cross_mean += p * student
        student_mean += q * student
    student_total = tl.sum(student_sum, axis=1)
    teacher_total = tl.sum(teacher_sum, axis=1)
    student_log = tl.log(student_total)
    teacher_log = tl.log(teacher_total)
    cross = tl.sum(cross_mean, axis=1) / teacher_total
    own = tl.sum(teacher_mean, axis=1) / teacher_total
    kl = (x_teacher * own - teacher_log) - (x_student * cross - student_log)
    return student_log, teacher_log, kl, tl.sum(student_mean, axis=1) / student_total - cross


@triton.jit
def _divergences(
    p_student, p_teacher, x_student, e_student, student_log, x_teacher, e_teacher, teacher_log, classes,
    FORM: tl.constexpr,
):  # fmt: skip
    """The KL of a block of rows once more, term by term."""
    total = tl.zeros((FORM.CLASS_ROWS, FORM.CLASS_COLUMNS), FORM.ACC)
    for start in range(0, classes, FORM.CLASS_COLUMNS):
        o_columns = start + tl.arange(0, FORM.CLASS_COLUMNS)
        m_columns = o_columns < classes
        b_student = tl.load(p_student + o_columns, mask=m_columns, other=0.0)
        b_teacher = tl.load(p_teacher + o_columns, mask=m_columns, other=0.0)
        log_q = x_student[:, None] * (b_student[None, :] - e_student[:, None]) - student_log[:, None]
        log_p = x_teacher[:, None] * (b_teacher[None, :] - e_teacher[:, None]) - teacher_log[:, None]
        total += tl.where(m_columns[None, :], kl_terms(log_p, log_q, tl.exp(log_p), tl.exp(log_q)), 0.0)
    return tl.sum(total, axis=1)


@triton.jit
def _columns(
    p_student, p_teacher, p_rows, b_student, b_teacher, student_low, student_high, teacher_low, teacher_high,
    classes, temperature, FORM: tl.constexpr,
):  # fmt: skip
    """The columns' part of the gradient of a block of classes k: Σ_j z_s,j (q_jk - p_jk)."""
    total = tl.zeros((FORM.CLASS_ROWS, FORM.CLASS_COLUMNS), FORM.ACC)
    for start in range(0, classes, FORM.CLASS_COLUMNS):
        o_rows = start + tl.arange(0, FORM.CLASS_COLUMNS)
        m_rows = o_rows < classes
        x_student, e_student = _row_points(p_student, o_rows, m_rows, student_low, student_high, temperature)
        x_teacher, e_teacher = _row_points(p_teacher, o_rows, m_rows, teacher_low, teacher_high, temperature)
        student_log = tl.load(p_rows + o_rows, mask=m_rows, other=0.0)
        teacher_log = tl.load(p_rows + classes + o_rows, mask=m_rows, other=0.0)
        weight = tl.load(p_student + o_rows, mask=m_rows, other=0.0)
        q = tl.exp(x_student[None, :] * (b_student[:, None] - e_student[None, :]) - student_log[None, :])
        p = tl.exp(x_teacher[None, :] * (b_teacher[:, None] - e_teacher[None, :]) - teacher_log[None, :])
        total += tl.where(m_rows[None, :], weight[None, :] * (q - p), 0.0)
    return tl.sum(total, axis=1)
