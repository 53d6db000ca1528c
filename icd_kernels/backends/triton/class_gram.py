"""The class Gram of one cell, (z_s, z_t) -> (loss, dz_s): the exact sum or the one linear in K, chosen in the kernel.

Which of them depends on the cell's logits alone, so that results repeat to the bit, and no host waits.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.exact_class import exact_class
from icd_kernels.backends.triton.linear_class import extremes, linear_class, plan_nodes

SINGLE_ERROR: tl.constexpr = tl.constexpr(1e-7)  # of one sum, with float32 exponentials
DOUBLE_ERROR: tl.constexpr = tl.constexpr(1e-15)
FIXED_COST: tl.constexpr = tl.constexpr(128)  # of planning and transforms, in rows of exponentials
CLOSE_MEAN: tl.constexpr = tl.constexpr(0.1)  # a mean row KL with too few digits left, as in csrc/common/class_rows.h


@triton.jit
def class_gram(
    p_student, p_teacher, p_rows, p_gradient, p_nodes, classes, pitch, temperature, factor, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    """Σ_k KL_k of one cell; writes its gradient times `factor`.

    p_student, p_teacher: (K,). p_rows: workspace (ROW_VALUES, pitch). p_gradient: (pitch,), written where
    `wants_gradient`. p_nodes: float64 workspace (NODE_SIZE,), or None where FORM.CLASS_SUM is "exact".
    """
    student = extremes(p_student, classes, FORM)
    teacher = extremes(p_teacher, classes, FORM)
    loss = tl.full((), 0.0, tl.float64)
    is_done = classes < 0
    if FORM.CLASS_SUM != "exact":
        loss, is_done = _linear(
            p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, classes, pitch, temperature, factor,
            wants_gradient, FORM,
        )  # fmt: skip
    exact = tl.full((), 0.0, FORM.ACC)
    if is_done == 0:
        exact = exact_class(
            p_student, p_teacher, p_rows, p_gradient, student[0], student[3], teacher[0], teacher[3], classes,
            pitch, temperature, factor, wants_gradient, FORM,
        )  # fmt: skip
    return tl.where(is_done, loss.to(FORM.ACC), exact)


@triton.jit
def _linear(
    p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, classes, pitch, temperature, factor,
    wants_gradient, FORM: tl.constexpr,
):  # fmt: skip
    """The loss by sums linear in K, and whether it is one to keep: with float32 exponentials at first, where rows are
    close with float64 ones. One piece of code for both, since the compiler's time grows with its square.
    """
    loss = tl.full((), 0.0, tl.float64)
    is_done = classes < 0
    is_close = _surely_close(p_student, p_teacher, classes, temperature, FORM)
    first: tl.constexpr = 0 if FORM.ACC == tl.float32 else 1
    for attempt in range(first, 2):
        is_double = attempt == 1
        student_nodes, teacher_nodes, is_better = _plan(
            student, teacher, classes, temperature, tl.where(is_double, DOUBLE_ERROR, SINGLE_ERROR),
            tl.where(is_double, 2 * FORM.DOUBLE_COST, 2), FORM,
        )  # fmt: skip
        if is_better & (is_done == 0) & (is_double | (is_close == 0)):
            loss = linear_class(
                p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, student_nodes, teacher_nodes,
                classes, pitch, temperature, factor, wants_gradient, is_double, FORM,
            )  # fmt: skip
            is_done = is_double | (loss >= classes * CLOSE_MEAN)
            tl.debug_barrier()
    return loss, is_done


@triton.jit
def _plan(student, teacher, classes, temperature, error, pass_cost, FORM: tl.constexpr):
    """Both networks' nodes, and whether sums at them are possible and cheaper than the exact ones.

    The exact sum is four rows of exponentials for each class; a node costs `pass_cost` with its share of interpolation.
    """
    student_low, student_below, student_above, student_high = student
    teacher_low, teacher_below, teacher_above, teacher_high = teacher
    bound = error.to(tl.float64) / classes
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
    """Whether d²/2 with d = 2 max|s - t| max(|s|, |t|)/τ, which no row KL exceeds, is below CLOSE_MEAN."""
    difference = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
    size = difference
    for start in range(0, classes, FORM.VECTOR_BLOCK):
        o_classes = start + tl.arange(0, FORM.VECTOR_BLOCK)
        s = tl.load(p_student + o_classes, mask=o_classes < classes, other=0.0)
        t = tl.load(p_teacher + o_classes, mask=o_classes < classes, other=0.0)
        difference = tl.maximum(difference, tl.abs(s - t))
        size = tl.maximum(size, tl.maximum(tl.abs(s), tl.abs(t)))
    d = tl.max(difference) * 2 * tl.max(size) / temperature
    return d * d < 2 * CLOSE_MEAN
