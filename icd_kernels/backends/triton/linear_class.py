"""The class Gram in time linear in K, exact to rounding: docs/linear_class_gram.md has the derivation and the bounds.

Sums over a row are polynomials in x = z/τ on each sign of x, sums over a column are polynomials in z: both are taken at
Chebyshev nodes and interpolated. Exponentials are float32, or float64 where `is_double`; nodes, coefficients and
interpolation are float64, because the sums range from 1 to K and a rounding at the large end shows at the small one.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.chebyshev import node_count, node_points, store_coefficients

NODE_BLOCK: tl.constexpr = tl.constexpr(16)
POINT_BLOCK: tl.constexpr = tl.constexpr(128)  # points that are evaluated side by side
FLUSH: tl.constexpr = tl.constexpr(16)  # steps of columns that are summed in EXP before they are added in float64


@triton.jit
def extremes(p_logits, classes, FORM: tl.constexpr):
    """Lowest, highest below zero, lowest from zero on, and highest of K logits; infinite where there is none."""
    low = tl.full((FORM.VECTOR_BLOCK,), float("inf"), FORM.ACC)
    above = low
    high = -low
    below = high
    is_number = low == low
    for start in range(0, classes, FORM.VECTOR_BLOCK):
        o_classes = start + tl.arange(0, FORM.VECTOR_BLOCK)
        m_classes = o_classes < classes
        logits = tl.load(p_logits + o_classes, mask=m_classes, other=0.0)
        is_number = is_number & (logits == logits)
        low = tl.minimum(low, tl.where(m_classes, logits, float("inf")))
        high = tl.maximum(high, tl.where(m_classes, logits, -float("inf")))
        above = tl.minimum(above, tl.where(m_classes & (logits >= 0), logits, float("inf")))
        below = tl.maximum(below, tl.where(m_classes & (logits < 0), logits, -float("inf")))
    nan = tl.where(tl.min(is_number.to(tl.int32)) == 1, 0.0, float("nan")).to(FORM.ACC)
    return tl.min(low) + nan, tl.max(below), tl.min(above), tl.max(high) + nan


@triton.jit
def plan_nodes(low, below, above, high, temperature, error, FORM: tl.constexpr):
    """Nodes of one network: of its rows at x >= 0, at x < 0, of its columns; all 0 where the exact sum must do."""
    span = (high - low).to(tl.float64)
    tau = temperature.to(tl.float64)
    positive = node_count((high - above).to(tl.float64) / tau * span, error, FORM.NODE_SPACE)
    negative = node_count((below - low).to(tl.float64) / tau * span, error, FORM.NODE_SPACE)
    widest = tl.maximum(tl.abs(low), tl.abs(high)).to(tl.float64) / tau
    columns = node_count(widest * span, error, FORM.NODE_SPACE)
    fits = (columns > 0) & (span > 0) & ((positive > 0) | (high < 0)) & ((negative > 0) | (low >= 0))
    positive = tl.where(fits & (high >= 0), positive, 0)
    negative = tl.where(fits & (low < 0), negative, 0)
    return positive, negative, tl.where(fits, columns, 0)


@triton.jit
def linear_class(
    p_student, p_teacher, p_rows, p_gradient, p_nodes, student, teacher, student_nodes, teacher_nodes, classes,
    pitch, temperature, factor, wants_gradient, is_double, FORM: tl.constexpr,
):  # fmt: skip
    """Σ_k KL_k of one cell; writes its gradient times `factor`, 0 from K to `pitch`.

    student, teacher: their extremes; student_nodes, teacher_nodes: their planned nodes. p_rows: workspace (2, K);
    p_nodes: float64 workspace of 17 rows of NODE_SPACE: 3 of values, then the coefficients of rows [network, side, 3]
    and of columns [network].
    """
    p_row_coefficients = p_nodes + 3 * FORM.NODE_SPACE
    for piece in range(4):
        side = piece % 2
        if piece < 2:
            p_logits = p_student
            low, below, above, high = student
            positive = student_nodes[0]
            negative = student_nodes[1]
        else:
            p_logits = p_teacher
            low, below, above, high = teacher
            positive = teacher_nodes[0]
            negative = teacher_nodes[1]
        count = tl.where(side == 0, positive, negative)
        first = tl.where(side == 0, above, low)
        last = tl.where(side == 0, high, below)
        top = tl.where(side == 0, high, low)
        _row_values(p_logits, p_student, p_nodes, count, first, last, top, classes, temperature, is_double, FORM)
        tl.debug_barrier()
        p_out = p_row_coefficients + piece * 3 * FORM.NODE_SPACE
        store_coefficients(p_nodes, p_out, count, 3, FORM.NODE_SPACE, NODE_BLOCK)
        tl.debug_barrier()
    loss = _rows(
        p_student, p_teacher, p_rows, p_gradient, p_row_coefficients, student, teacher, student_nodes, teacher_nodes,
        classes, pitch, temperature, wants_gradient, FORM,
    )  # fmt: skip
    if wants_gradient:
        tl.debug_barrier()
        p_column_coefficients = p_nodes + 15 * FORM.NODE_SPACE
        for network in range(2):
            if network == 0:
                p_logits = p_student
                low = student[0]
                high = student[3]
                count = student_nodes[2]
            else:
                p_logits = p_teacher
                low = teacher[0]
                high = teacher[3]
                count = teacher_nodes[2]
            p_weights = p_rows + network * classes
            _column_values(p_logits, p_weights, p_nodes, count, low, high, classes, temperature, is_double, FORM)
            tl.debug_barrier()
            p_out = p_column_coefficients + network * FORM.NODE_SPACE
            store_coefficients(p_nodes, p_out, count, 1, FORM.NODE_SPACE, NODE_BLOCK)
            tl.debug_barrier()
        _columns(
            p_student, p_teacher, p_gradient, p_column_coefficients, student, teacher, student_nodes, teacher_nodes,
            classes, factor / temperature, FORM,
        )  # fmt: skip
    return loss


@triton.jit
def _row_values(
    p_logits, p_student, p_values, count, first, last, top, classes, temperature, is_double, FORM: tl.constexpr
):
    """Σ_j e_j, Σ_j e_j (y_j - top) and Σ_j e_j s_j, e_j = exp(x (y_j - top)), at the nodes x of one side."""
    middle, half = _interval(first, last, temperature)
    for start in range(0, count, NODE_BLOCK):
        o_nodes = start + tl.arange(0, NODE_BLOCK)
        x = middle + half * node_points(o_nodes, count)
        one = tl.zeros((NODE_BLOCK,), tl.float64)
        own = one
        cross = one
        for begin in range(0, classes, _flush(FORM)):
            if is_double:
                sums = _row_terms(p_logits, p_student, x, top, begin, classes, tl.float64, FORM)
            else:
                sums = _row_terms(p_logits, p_student, x, top, begin, classes, tl.float32, FORM)
            one += sums[0]
            own += sums[1]
            cross += sums[2]
        tl.store(p_values + o_nodes, one, mask=o_nodes < count)
        tl.store(p_values + FORM.NODE_SPACE + o_nodes, own, mask=o_nodes < count)
        tl.store(p_values + 2 * FORM.NODE_SPACE + o_nodes, cross, mask=o_nodes < count)


@triton.jit
def _flush(FORM: tl.constexpr):
    """Terms that are summed in the exponentials' own type before they are added in float64."""
    return FLUSH * FORM.CLASS_COLUMNS


@triton.jit
def _row_terms(p_logits, p_student, x, top, begin, classes, EXP: tl.constexpr, FORM: tl.constexpr):
    """The three sums of :func:`_row_values` over columns from `begin` on, in float64."""
    columns: tl.constexpr = FORM.CLASS_COLUMNS // 4 if EXP == tl.float64 else FORM.CLASS_COLUMNS
    b_one = tl.zeros((NODE_BLOCK, columns), EXP)
    b_own = b_one
    b_cross = b_one
    for start in range(begin, tl.minimum(begin + _flush(FORM), classes), columns):
        o_columns = start + tl.arange(0, columns)
        m_columns = o_columns < classes
        b_below = tl.load(p_logits + o_columns, mask=m_columns, other=0.0).to(EXP) - top.to(EXP)
        b_student = tl.load(p_student + o_columns, mask=m_columns, other=0.0).to(EXP)
        exponentials = tl.where(m_columns[None, :], tl.exp(x.to(EXP)[:, None] * b_below[None, :]), 0.0)
        b_one += exponentials
        b_own += exponentials * b_below[None, :]
        b_cross += exponentials * b_student[None, :]
    return (
        tl.sum(b_one.to(tl.float64), axis=1),
        tl.sum(b_own.to(tl.float64), axis=1),
        tl.sum(b_cross.to(tl.float64), axis=1),
    )


@triton.jit
def _rows(
    p_student, p_teacher, p_rows, p_gradient, p_coefficients, student, teacher, student_nodes, teacher_nodes, classes,
    pitch, temperature, wants_gradient, FORM: tl.constexpr,
):  # fmt: skip
    """Σ_k KL_k; writes the rows' part of the gradient, and s_k over both sums of row k to p_rows."""
    loss = tl.zeros((POINT_BLOCK,), tl.float64)
    tau = temperature.to(tl.float64)
    student_low = student[0]
    student_high = student[3]
    for start in range(0, classes, POINT_BLOCK):
        o_rows = start + tl.arange(0, POINT_BLOCK)
        m_rows = o_rows < classes
        s = tl.load(p_student + o_rows, mask=m_rows, other=0.0).to(tl.float64)
        t = tl.load(p_teacher + o_rows, mask=m_rows, other=0.0).to(tl.float64)
        student_sum, _own, student_mean = _evaluate_rows(s, m_rows, p_coefficients, student, student_nodes, tau, FORM)
        p_teacher_coefficients = p_coefficients + 6 * FORM.NODE_SPACE
        teacher_sum, teacher_own, cross = _evaluate_rows(
            t, m_rows, p_teacher_coefficients, teacher, teacher_nodes, tau, FORM
        )
        student_top = tl.where(s >= 0, student_high, student_low).to(tl.float64)
        cross = cross / teacher_sum
        kl = (t * teacher_own / teacher_sum - s * (cross - student_top)) / tau + tl.log(student_sum / teacher_sum)
        loss += tl.where(m_rows, kl, 0.0)
        if wants_gradient:
            gradient = tl.where(m_rows, student_mean / student_sum - cross, 0.0)
            tl.store(p_gradient + o_rows, gradient.to(FORM.ACC), mask=o_rows < pitch)
            tl.store(p_rows + o_rows, (s / student_sum).to(FORM.ACC), mask=m_rows)
            tl.store(p_rows + classes + o_rows, (s / teacher_sum).to(FORM.ACC), mask=m_rows)
    return tl.sum(loss)


@triton.jit
def _evaluate_rows(y, m_rows, p_coefficients, network, nodes, temperature, FORM: tl.constexpr):
    """The three sums of one network at points y/τ, each by the interpolant of its side."""
    low, below, above, high = network
    positive = nodes[0]
    negative = nodes[1]
    is_negative = y < 0
    up_middle, up_half = _interval(above, high, temperature)
    down_middle, down_half = _interval(low, below, temperature)
    count = tl.where(is_negative, negative, positive)
    half = tl.where(is_negative, down_half, up_half)
    u = (y / temperature - tl.where(is_negative, down_middle, up_middle)) / tl.where(half > 0, half, 1.0)
    p_side = p_coefficients + is_negative.to(tl.int32) * (3 * FORM.NODE_SPACE)
    before = u  # T_{-1} = T_1
    now = u * 0 + 1
    one = u * 0
    own = one
    cross = one
    for n in range(tl.maximum(positive, negative)):
        m_side = m_rows & (n < count)
        one += tl.load(p_side + n, mask=m_side, other=0.0) * now
        own += tl.load(p_side + FORM.NODE_SPACE + n, mask=m_side, other=0.0) * now
        cross += tl.load(p_side + 2 * FORM.NODE_SPACE + n, mask=m_side, other=0.0) * now
        following = 2 * u * now - before
        before = now
        now = following
    return tl.where(m_rows, one, 1.0), own, cross


@triton.jit
def _column_values(
    p_logits, p_weights, p_values, count, low, high, classes, temperature, is_double, FORM: tl.constexpr
):
    """Σ_k w_k exp(x_k (y - top_k)) at the nodes y of one network's columns."""
    middle, half = _interval(low, high, temperature * 0 + 1)
    for start in range(0, count, NODE_BLOCK):
        o_nodes = start + tl.arange(0, NODE_BLOCK)
        place = middle + half * node_points(o_nodes, count)
        from_high = place - high.to(tl.float64)
        from_low = place - low.to(tl.float64)
        total = tl.zeros((NODE_BLOCK,), tl.float64)
        for begin in range(0, classes, _flush(FORM)):
            if is_double:
                part = _column_terms(
                    p_logits, p_weights, from_high, from_low, begin, classes, temperature, tl.float64, FORM
                )
            else:
                part = _column_terms(
                    p_logits, p_weights, from_high, from_low, begin, classes, temperature, tl.float32, FORM
                )
            total += part
        tl.store(p_values + o_nodes, total, mask=o_nodes < count)


@triton.jit
def _column_terms(
    p_logits, p_weights, from_high, from_low, begin, classes, temperature, EXP: tl.constexpr, FORM: tl.constexpr
):
    """The sum of :func:`_column_values` over rows from `begin` on, in float64."""
    columns: tl.constexpr = FORM.CLASS_COLUMNS // 4 if EXP == tl.float64 else FORM.CLASS_COLUMNS
    b_total = tl.zeros((NODE_BLOCK, columns), EXP)
    for start in range(begin, tl.minimum(begin + _flush(FORM), classes), columns):
        o_rows = start + tl.arange(0, columns)
        m_rows = o_rows < classes
        x = (tl.load(p_logits + o_rows, mask=m_rows, other=0.0) / temperature).to(EXP)
        weight = tl.load(p_weights + o_rows, mask=m_rows, other=0.0).to(EXP)
        distance = tl.where((x >= 0)[None, :], from_high.to(EXP)[:, None], from_low.to(EXP)[:, None])
        b_total += weight[None, :] * tl.exp(x[None, :] * distance)
    return tl.sum(b_total.to(tl.float64), axis=1)


@triton.jit
def _columns(
    p_student, p_teacher, p_gradient, p_coefficients, student, teacher, student_nodes, teacher_nodes, classes, factor,
    FORM: tl.constexpr,
):  # fmt: skip
    """Adds the columns' part to the gradient of the rows and multiplies by `factor`."""
    for start in range(0, classes, POINT_BLOCK):
        o_classes = start + tl.arange(0, POINT_BLOCK)
        m_classes = o_classes < classes
        gradient = tl.load(p_gradient + o_classes, mask=m_classes, other=0.0).to(tl.float64)
        gradient += _evaluate_columns(p_student, o_classes, m_classes, p_coefficients, student, student_nodes, FORM)
        p_teacher_coefficients = p_coefficients + FORM.NODE_SPACE
        gradient -= _evaluate_columns(
            p_teacher, o_classes, m_classes, p_teacher_coefficients, teacher, teacher_nodes, FORM
        )
        tl.store(p_gradient + o_classes, (gradient * factor).to(FORM.ACC), mask=m_classes)


@triton.jit
def _evaluate_columns(p_logits, o_classes, m_classes, p_coefficients, network, nodes, FORM: tl.constexpr):
    low = network[0]
    high = network[3]
    count = nodes[2]
    middle, half = _interval(low, high, low * 0 + 1)
    u = (tl.load(p_logits + o_classes, mask=m_classes, other=0.0).to(tl.float64) - middle) / tl.where(
        half > 0, half, 1.0
    )
    before = u
    now = u * 0 + 1
    total = u * 0
    for n in range(count):
        total += tl.load(p_coefficients + n) * now
        following = 2 * u * now - before
        before = now
        now = following
    return total


@triton.jit
def _interval(first, last, divisor):
    """Middle and half length of [first, last] over `divisor`."""
    scale = 2 * divisor.to(tl.float64)
    return (first.to(tl.float64) + last.to(tl.float64)) / scale, (last.to(tl.float64) - first.to(tl.float64)) / scale
