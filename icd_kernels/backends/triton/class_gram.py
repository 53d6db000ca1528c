"""The class Gram of one cell, (z_s, z_t) -> (loss, dz_s): the exact sum or the one linear in K, chosen in the kernel.

Which of them depends on the cell's logits alone, so that results repeat to the bit, and no host waits.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.divergence import CLOSE_ROWS
from icd_kernels.backends.triton.exact_class import exact_class
from icd_kernels.backends.triton.linear_class import extremes, linear_class, plan_nodes

SINGLE_ERROR: tl.constexpr = tl.constexpr(1e-7)  # of one sum, with float32 exponentials
DOUBLE_ERROR: tl.constexpr = tl.constexpr(1e-15)
FIXED_COST: tl.constexpr = tl.constexpr(128)  # of planning and transforms, in rows of exponentials


@triton.jit
def class_gram(p_student, p_teacher, p_rows, p_gradient, p_nodes, classes, temperature, factor, FORM: tl.constexpr):
    """Σ_k KL_k of one cell; writes its gradient times `factor`.

    p_student, p_teacher: (K,). p_rows: workspace (2, K). p_gradient: (K,) or None. p_nodes: float64 workspace
    (NODE_SIZE,), or None where FORM.CLASS_SUM is "exact".
    """
    student = extremes(p_student, classes, FORM)
    teacher = extremes(p_teacher, classes, FORM)
    loss = tl.full((), 0.0, tl.float64)
    is_done = classes < 0
    if FORM.CLASS_SUM != "exact":
        is_close = _surely_close(p_student, p_teacher, classes, temperature, FORM)
        if FORM.ACC == tl.float32:
            student_nodes, teacher_nodes, is_better = _plan(
                student, teacher, classes, temperature, SINGLE_ERROR, 2, FORM
            )
            if is_better & (is_close == 0):
                loss = linear_class(
                    p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, student_nodes, teacher_nodes,
                    classes, temperature, factor, tl.float32, FORM,
                )  # fmt: skip
                is_done = loss >= classes * CLOSE_ROWS
                tl.debug_barrier()
        if is_done == 0:
            s_nodes, t_nodes, is_cheap = _plan(
                student, teacher, classes, temperature, DOUBLE_ERROR, 2 * FORM.DOUBLE_COST, FORM
            )
            if is_cheap:
                loss = linear_class(
                    p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, s_nodes, t_nodes,
                    classes, temperature, factor, tl.float64, FORM,
                )  # fmt: skip
                is_done = classes > 0
    exact = tl.full((), 0.0, FORM.ACC)
    if is_done == 0:
        exact = exact_class(
            p_student, p_teacher, p_rows, p_gradient, student[0], student[3], teacher[0], teacher[3], classes,
            temperature, factor, FORM,
        )  # fmt: skip
    return tl.where(is_done, loss.to(FORM.ACC), exact)


@triton.jit
def _plan(student, teacher, classes, temperature, error, pass_cost, FORM: tl.constexpr):
    """Both networks' nodes, and whether sums at them are possible and cheaper than the exact ones.

    The exact sum is four rows of exponentials for each class; a node costs `pass_cost` with its share of interpolation.
    """
    student_low, student_below, student_above, student_high = student
    teacher_low, teacher_below, teacher_above, teacher_high = teacher
    bound = tl.full((), error, tl.float64) / classes
    s = plan_nodes(student_low, student_below, student_above, student_high, temperature, bound, FORM)
    t = plan_nodes(teacher_low, teacher_below, teacher_above, teacher_high, temperature, bound, FORM)
    s_positive, s_negative, s_columns = s
    t_positive, t_negative, t_columns = t
    passes = s_positive + s_negative + s_columns + t_positive + t_negative + t_columns
    is_better = (s_columns > 0) & (t_columns > 0)
    if FORM.CLASS_SUM != "linear":
        is_better = is_better & (passes * pass_cost + FIXED_COST < 4 * classes)
    return s, t, is_better


@triton.jit
def _surely_close(p_student, p_teacher, classes, temperature, FORM: tl.constexpr):
    """Whether KL_k <= d²/2, d = max|s - t| (max|s| + max|t|)/τ, keeps every row below CLOSE_ROWS."""
    difference = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
    size = difference
    for start in range(0, classes, FORM.VECTOR_BLOCK):
        o_classes = start + tl.arange(0, FORM.VECTOR_BLOCK)
        s = tl.load(p_student + o_classes, mask=o_classes < classes, other=0.0)
        t = tl.load(p_teacher + o_classes, mask=o_classes < classes, other=0.0)
        difference = tl.maximum(difference, tl.abs(s - t))
        size = tl.maximum(size, tl.maximum(tl.abs(s), tl.abs(t)))
    d = tl.max(difference) * 2 * tl.max(size) / temperature
    return d * d < 2 * CLOSE_ROWS
