"""The Gram stage: from local logits to every image's loss and dl/dz, as tasks of one launch.

class: a task for every image and cell. spatial: for every image and scale. sample: three kinds of task, each waiting
for the one before: normalise (every image and cell), losses of rows (every cell and block of images), gradient (the
same).
The last task of a group of images sums up their losses and folds dl/dz onto the base cells.

Arguments that all of these share: `student` and `teacher` are logits with how their projection was divided
(logits.wait_for_logits); whether a gradient is wanted is a number, so that a validation batch compiles nothing.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import scale_of_cell
from icd_kernels.backends.triton.class_gram import class_gram
from icd_kernels.backends.triton.exact_class import ROW_VALUES
from icd_kernels.backends.triton.finish import factor_of, finish_images, normalize_cell, zero
from icd_kernels.backends.triton.forms import CLASS, MEAN, NONE, SAMPLE, SPATIAL
from icd_kernels.backends.triton.logits import unnormalize_gradient_rows, wait_for_logits
from icd_kernels.backends.triton.sample_task import sample_task
from icd_kernels.backends.triton.spatial_task import spatial_task


@triton.jit
def gram_task(
    task, student, teacher, student_division, teacher_division, work, counters, batch, temperature, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    """Task number `task` of the stage."""
    tau = (tl.full((), 0.0, tl.float64) + temperature).to(FORM.ACC)
    if FORM.GRAM == CLASS:
        _class_task(
            task, student, teacher, student_division, teacher_division, work, counters, batch, tau, wants_gradient, FORM
        )
    elif FORM.GRAM == SPATIAL:
        spatial_task(
            task, student, teacher, student_division, teacher_division, work, counters, batch, tau, wants_gradient, FORM
        )
    else:
        sample_task(
            task, student, teacher, student_division, teacher_division, work, counters, batch, tau, wants_gradient, FORM
        )


@triton.jit
def gram_tasks(batch, wants_gradient, FORM: tl.constexpr):
    """How many tasks the stage has."""
    if FORM.GRAM == SAMPLE:
        blocks = tl.cdiv(batch, FORM.POINT_BLOCK)
        count = FORM.CELLS * (batch + blocks * (1 + wants_gradient))
    else:
        count = batch * FORM.UNITS
    return count


@triton.jit
def reduce_losses(work, batch, FORM: tl.constexpr):
    """The loss of the batch from those of its images; for the last program of a launch."""
    if FORM.REDUCTION != NONE:
        total = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
        for start in range(0, batch, FORM.VECTOR_BLOCK):
            o_images = start + tl.arange(0, FORM.VECTOR_BLOCK)
            total += tl.load(work.p_image_loss + o_images, mask=o_images < batch, other=0.0)
        loss = tl.sum(total)
        if FORM.REDUCTION == MEAN:
            loss = loss / batch
        tl.store(work.p_loss, loss)


@triton.jit
def _class_task(
    task, student, teacher, student_division, teacher_division, work, counters, batch, temperature, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    image = task // FORM.CELLS
    cell = task % FORM.CELLS
    scale, first, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    wait_for_logits(student, student_division, image)
    wait_for_logits(teacher, teacher_division, image)
    wide = task.to(tl.int64)
    p_gradient = work.p_gradient + wide * work.pitch
    loss = tl.full((), 0.0, FORM.ACC)
    if weight > 0:
        divisor = normalize_cell(
            student, teacher, student_division, teacher_division, work, image, cell - first, first, scale, batch, FORM
        )
        p_nodes = work.p_nodes
        if FORM.CLASS_SUM != "exact":
            p_nodes = work.p_nodes + wide * FORM.NODE_SIZE
        loss = weight * class_gram(
            work.p_student + wide * work.pitch, work.p_teacher + wide * work.pitch,
            work.p_rows + ROW_VALUES * wide * work.pitch, p_gradient, p_nodes, work.classes, work.pitch, temperature,
            factor_of(weight, batch, FORM), wants_gradient, FORM,
        )  # fmt: skip
        if wants_gradient:
            o_rows = wide * work.pitch + tl.zeros((1,), tl.int64)
            unnormalize_gradient_rows(
                work.p_student, work.p_gradient, o_rows, o_rows >= 0, divisor, work.classes, FORM, FORM.VECTOR_BLOCK
            )
    elif wants_gradient:
        zero(p_gradient, work.pitch, FORM)
    tl.store(work.p_unit_loss + task, loss)
    finish_images(image, FORM.UNITS, 1, work, counters, batch, wants_gradient, FORM)
