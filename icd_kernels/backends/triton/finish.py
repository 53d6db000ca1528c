"""What the tasks of every Gram begin and end with: normalised rows of a cell, and the images that are done."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.fold import fold_gradient
from icd_kernels.backends.triton.forms import MEAN, SAMPLE
from icd_kernels.backends.triton.logits import assemble_rows
from icd_kernels.backends.triton.structs import GROUPS
from icd_kernels.backends.triton.tasks import arrive

MOST_GROUPS: tl.constexpr = tl.constexpr(GROUPS)


@triton.jit
def normalize_cell(
    student, teacher, student_division, teacher_division, work, image, local, first, scale, batch, FORM: tl.constexpr
):
    """Normalised logits of one cell of both networks; returns the student's divisor, [1]."""
    o_local = local + tl.zeros((1,), tl.int32)
    o_images = image + tl.zeros((1,), tl.int32)
    m_rows = o_local >= 0
    assemble_rows(
        teacher, teacher_division, work.p_teacher, work.p_teacher_raw, o_images, o_local, m_rows, first, scale, batch,
        work.classes, work.pitch, FORM.TEACHER_FINEST, FORM, FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
    )  # fmt: skip
    return assemble_rows(
        student, student_division, work.p_student, work.p_student_raw, o_images, o_local, m_rows, first, scale, batch,
        work.classes, work.pitch, FORM.STUDENT_FINEST, FORM, FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
    )  # fmt: skip


@triton.jit
def image_group(batch, FORM: tl.constexpr):
    """Images that share a counter, and that one program sums up and folds: whole blocks of rows for sample."""
    block: tl.constexpr = FORM.POINT_BLOCK if FORM.GRAM == SAMPLE else 1
    return block * tl.cdiv(tl.cdiv(batch, block), MOST_GROUPS)


@triton.jit
def finish_images(image, units, block, work, counters, batch, wants_gradient, FORM: tl.constexpr):
    """Counts a task of `image`; the last one of its group (of `units` per `block` images) finishes these images."""
    group_images = image_group(batch, FORM)
    start = image // group_images * group_images
    stop = tl.minimum(start + group_images, batch)
    if arrive(counters.p_images + image // group_images) == tl.cdiv(stop - start, block) * units - 1:
        tl.debug_barrier()
        for done in range(start, stop):
            o_units = tl.arange(0, FORM.UNIT_BLOCK)
            p_units = work.p_unit_loss + (tl.full((), 0, tl.int64) + done) * FORM.UNITS
            loss = tl.sum(tl.load(p_units + o_units, mask=o_units < FORM.UNITS, other=0.0))
            tl.store(work.p_image_loss + done, loss)
            if FORM.FINEST > 0:
                if wants_gradient:
                    fold_gradient(
                        work.p_gradient, work.pitch * FORM.CELLS, work.pitch, 1, work.p_saved, done, work.pitch,
                        work.pitch, FORM.ACC, FORM.SCALES, FORM.FIRSTS, FORM.FINEST, FORM.POINT_BLOCK, FORM.POINT_DEPTH,
                    )  # fmt: skip


@triton.jit
def factor_of(weight, batch, FORM: tl.constexpr):
    """What every gradient of a Gram matrix is multiplied by: its weight, over the batch for the mean."""
    factor = weight
    if FORM.REDUCTION == MEAN:
        factor = weight / batch
    return factor


@triton.jit
def zero(p_out, count, FORM: tl.constexpr):
    """Zeros at `count` places."""
    zeros = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
    for start in range(0, count, FORM.VECTOR_BLOCK):
        o_out = start + tl.arange(0, FORM.VECTOR_BLOCK)
        tl.store(p_out + o_out, zeros, mask=o_out < count)
