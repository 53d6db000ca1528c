"""Sample tasks: the Gram matrix between the images at one cell, a block of images at a time."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import scale_of_cell
from icd_kernels.backends.triton.finish import MOST_GROUPS, factor_of, finish_images, normalize_cell, zero
from icd_kernels.backends.triton.logits import unnormalize_gradient_rows, wait_for_logits
from icd_kernels.backends.triton.points_gram import point_gradient, point_losses
from icd_kernels.backends.triton.tasks import arrive, wait_for


@triton.jit
def sample_task(
    task, student, teacher, student_division, teacher_division, work, counters, batch, temperature, wants_gradient,
    FORM: tl.constexpr,
):  # fmt: skip
    """In order: normalise every cell of every image, then losses of blocks of images, then their gradients."""
    blocks = tl.cdiv(batch, FORM.POINT_BLOCK)
    prepared = batch * FORM.CELLS
    if task < prepared:
        image = task // FORM.CELLS
        cell = task % FORM.CELLS
        scale, first, _ = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
        wait_for_logits(student, student_division, image)
        wait_for_logits(teacher, teacher_division, image)
        divisor = normalize_cell(
            student, teacher, student_division, teacher_division, work, image, cell - first, first, scale, batch, FORM
        )
        tl.store(work.p_divisor + task + tl.arange(0, 1), divisor)
        arrive(counters.p_cells + cell // _cell_group(FORM))
    elif task < prepared + FORM.CELLS * blocks:
        _losses(task - prepared, blocks, work, counters, batch, temperature, wants_gradient, FORM)
    else:
        _gradient(task - prepared - FORM.CELLS * blocks, blocks, work, counters, batch, temperature, FORM)


@triton.jit
def _cell_group(FORM: tl.constexpr):
    """Cells that share a counter."""
    return tl.cdiv(FORM.CELLS, MOST_GROUPS)


@triton.jit
def _losses(unit, blocks, work, counters, batch, temperature, wants_gradient, FORM: tl.constexpr):
    """The rows of a block of images in the Gram matrix of one cell."""
    cell = unit // blocks
    block = unit % blocks
    _, _, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    group = cell // _cell_group(FORM)
    cells = tl.minimum(_cell_group(FORM), FORM.CELLS - group * _cell_group(FORM))
    wait_for(counters.p_cells + group, cells * batch)
    o_images = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
    kl = tl.zeros((FORM.POINT_BLOCK,), FORM.ACC)
    if weight > 0:
        kl = weight * point_losses(
            work.p_student + cell * work.pitch, work.p_teacher + cell * work.pitch, work.p_rows + 4 * cell,
            4 * FORM.CELLS, block, batch, FORM.CELLS * work.pitch, work.pitch, temperature, wants_gradient, FORM,
        )  # fmt: skip
    tl.store(work.p_unit_loss + o_images.to(tl.int64) * FORM.CELLS + cell, kl, mask=o_images < batch)
    if wants_gradient:
        arrive(counters.p_rows + group)
    else:
        finish_images(
            block * FORM.POINT_BLOCK, FORM.CELLS, FORM.POINT_BLOCK, work, counters, batch, wants_gradient, FORM
        )


@triton.jit
def _gradient(unit, blocks, work, counters, batch, temperature, FORM: tl.constexpr):
    """dl/dz of a block of images at one cell."""
    cell = unit // blocks
    block = unit % blocks
    _, _, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    group = cell // _cell_group(FORM)
    cells = tl.minimum(_cell_group(FORM), FORM.CELLS - group * _cell_group(FORM))
    wait_for(counters.p_rows + group, cells * blocks)
    o_images = block * FORM.POINT_BLOCK + tl.arange(0, FORM.POINT_BLOCK)
    stride = FORM.CELLS * work.pitch
    if weight > 0:
        p_student = work.p_student + cell * work.pitch
        p_gradient = work.p_gradient + cell * work.pitch
        point_gradient(
            p_student, work.p_teacher + cell * work.pitch, work.p_rows + 4 * cell, 4 * FORM.CELLS, p_gradient,
            work.p_upstream, work.stride_upstream, block, batch, stride, work.pitch, temperature,
            factor_of(weight, batch, FORM), FORM,
        )  # fmt: skip
        o_divisor = o_images.to(tl.int64) * FORM.CELLS + cell
        divisor = tl.load(work.p_divisor + o_divisor, mask=o_images < batch, other=1.0)
        unnormalize_gradient_rows(
            p_student, p_gradient, o_images.to(tl.int64) * stride, o_images < batch, divisor, work.classes, FORM,
            FORM.POINT_VECTOR,
        )  # fmt: skip
    else:
        for image in range(block * FORM.POINT_BLOCK, tl.minimum((block + 1) * FORM.POINT_BLOCK, batch)):
            o_row = (tl.full((), 0, tl.int64) + image) * FORM.CELLS + cell
            zero(work.p_gradient + o_row * work.pitch, work.pitch, FORM)
    finish_images(block * FORM.POINT_BLOCK, FORM.CELLS, FORM.POINT_BLOCK, work, counters, batch, True, FORM)
