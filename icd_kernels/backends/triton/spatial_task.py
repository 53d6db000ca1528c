"""A spatial task: the Gram matrix between one image's cells of one scale, as one tile or tile by tile."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.finish import factor_of, finish_images, zero
from icd_kernels.backends.triton.logits import assemble_rows, unnormalize_gradient_rows, wait_for_logits
from icd_kernels.backends.triton.points_gram import point_gradient, point_losses
from icd_kernels.backends.triton.resident_gram import resident_gram


@triton.jit
def spatial_task(
    task, student, teacher, student_division, teacher_division, work, counters, batch, temperature, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    """One image, one scale."""
    image = task // FORM.UNITS
    scale, first, weight = _scale_of_unit(task % FORM.UNITS, FORM)
    wait_for_logits(student, student_division, image)
    wait_for_logits(teacher, teacher_division, image)
    start_row = image.to(tl.int64) * FORM.CELLS + first
    loss = tl.full((), 0.0, FORM.ACC)
    if weight > 0:
        factor = factor_of(weight, batch, FORM)
        if FORM.RESIDENT > 0:
            loss = resident_gram(
                student, teacher, student_division, teacher_division, work, image, first, scale, batch, temperature,
                factor, wants_gradient, FORM,
            )  # fmt: skip
        else:
            _assemble_scale(
                student, teacher, student_division, teacher_division, work, image, first, scale, batch, FORM
            )
            loss = _tiled_gram(work, start_row, scale * scale, temperature, factor, wants_gradient, FORM)
        loss = weight * loss
    elif wants_gradient:
        zero(work.p_gradient + start_row * work.pitch, scale * scale * work.pitch, FORM)
    tl.store(work.p_unit_loss + task, loss)
    finish_images(image, FORM.UNITS, 1, work, counters, batch, wants_gradient, FORM)


@triton.jit
def _assemble_scale(
    student, teacher, student_division, teacher_division, work, image, first, scale, batch, FORM: tl.constexpr
):
    """Normalised logits of one image's cells of one scale, of both networks."""
    count = scale * scale
    for start in range(0, count, FORM.POINT_BLOCK):
        o_local = start + tl.arange(0, FORM.POINT_BLOCK)
        o_images = o_local * 0 + image
        m_rows = o_local < count
        assemble_rows(
            teacher, teacher_division, work.p_teacher, work.p_teacher_raw, o_images, o_local, m_rows, first, scale,
            batch, work.classes, work.pitch, FORM.TEACHER_FINEST, FORM, FORM.POINT_DEPTH, FORM.POINT_VECTOR,
        )  # fmt: skip
        divisor = assemble_rows(
            student, student_division, work.p_student, work.p_student_raw, o_images, o_local, m_rows, first, scale,
            batch, work.classes, work.pitch, FORM.STUDENT_FINEST, FORM, FORM.POINT_DEPTH, FORM.POINT_VECTOR,
        )  # fmt: skip
        tl.store(work.p_divisor + image.to(tl.int64) * FORM.CELLS + first + o_local, divisor, mask=m_rows)
    tl.debug_barrier()


@triton.jit
def _tiled_gram(work, start_row, count, temperature, factor, wants_gradient, FORM: tl.constexpr):
    """Loss of one image's Gram matrix of one scale; writes its gradient, times `factor`."""
    p_student = work.p_student + start_row * work.pitch
    p_teacher = work.p_teacher + start_row * work.pitch
    p_rows = work.p_rows + 4 * start_row
    losses = tl.zeros((FORM.POINT_BLOCK,), FORM.ACC)
    blocks = tl.cdiv(count, FORM.POINT_BLOCK)
    for block in range(blocks):
        o_rows = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
        kl = point_losses(
            p_student, p_teacher, p_rows, 4, block, count, work.pitch, work.pitch, temperature, wants_gradient, FORM
        )
        losses += tl.where(o_rows < count, kl, 0.0)
    if wants_gradient:
        tl.debug_barrier()
        p_gradient = work.p_gradient + start_row * work.pitch
        for block in range(blocks):
            point_gradient(
                p_student, p_teacher, p_rows, 4, p_gradient, None, 0, block, count, work.pitch, work.pitch,
                temperature, factor, FORM,
            )  # fmt: skip
            o_rows = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
            divisor = tl.load(work.p_divisor + start_row + o_rows, mask=o_rows < count, other=1.0)
            unnormalize_gradient_rows(
                p_student, p_gradient, o_rows.to(tl.int64) * work.pitch, o_rows < count, divisor, work.classes, FORM,
                FORM.POINT_VECTOR,
            )  # fmt: skip
    return tl.sum(losses)


@triton.jit
def _scale_of_unit(unit, FORM: tl.constexpr):
    """Scale number `unit`, its first cell and its weight."""
    scale = unit * 0 + FORM.SCALES[0]
    first = unit * 0
    weight = tl.full((), FORM.WEIGHTS[0], FORM.ACC)
    for s in tl.static_range(1, len(FORM.SCALES)):
        scale = tl.where(unit == s, FORM.SCALES[s], scale)
        first = tl.where(unit == s, FORM.FIRSTS[s], first)
        weight = tl.where(unit == s, tl.full((), FORM.WEIGHTS[s], FORM.ACC), weight)
    return scale, first, weight
