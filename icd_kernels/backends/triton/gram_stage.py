"""The Gram stage: from local logits to every image's loss and dl/dz, as tasks of one launch.

class: a task for every image and cell. spatial: for every image and scale. sample: three kinds of task, each waiting
for the one before: normalise (every image and cell), losses of rows (every cell and block of images), gradient (the
same).
The last task of a group of images sums up their losses and folds dl/dz onto the base cells.
"""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import scale_of_cell, window_start, window_stop
from icd_kernels.backends.triton.class_gram import class_gram
from icd_kernels.backends.triton.logits import assemble_rows, unnormalize_gradient_rows, wait_for_logits
from icd_kernels.backends.triton.pair_gram import pair_gradient, pair_losses
from icd_kernels.backends.triton.resident_gram import resident_gram
from icd_kernels.backends.triton.tasks import arrive, wait_for


@triton.jit
def gram_task(task, student, teacher, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    """Task number `task` of the stage."""
    tau = (tl.full((), 0.0, tl.float64) + temperature).to(FORM.ACC)
    if FORM.GRAM == "class":
        _class_task(task, student, teacher, work, counters, batch, classes, tau, FORM)
    elif FORM.GRAM == "spatial":
        _spatial_task(task, student, teacher, work, counters, batch, classes, tau, FORM)
    else:
        _sample_task(task, student, teacher, work, counters, batch, classes, tau, FORM)


@triton.jit
def reduce_losses(work, batch, FORM: tl.constexpr):
    """The loss of the batch from those of its images; for the last program of a launch."""
    if FORM.REDUCTION != "none":
        total = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
        for start in range(0, batch, FORM.VECTOR_BLOCK):
            o_images = start + tl.arange(0, FORM.VECTOR_BLOCK)
            total += tl.load(work.p_image_loss + o_images, mask=o_images < batch, other=0.0)
        loss = tl.sum(total)
        if FORM.REDUCTION == "mean":
            loss = loss / batch
        tl.store(work.p_loss, loss)


@triton.jit
def _class_task(task, student, teacher, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    image = task // FORM.CELLS
    cell = task % FORM.CELLS
    scale, first, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    wait_for_logits(student, image, FORM.STUDENT)
    wait_for_logits(teacher, image, FORM.TEACHER)
    o_row = task.to(tl.int64) * classes
    p_gradient = work.p_gradient
    if FORM.GRADIENT:
        p_gradient = work.p_gradient + o_row
    loss = tl.full((), 0.0, FORM.ACC)
    if weight > 0:
        divisor = _normalize_cell(student, teacher, work, image, cell - first, first, scale, classes, FORM)
        p_rows = work.p_rows
        if FORM.GRADIENT:
            p_rows = work.p_rows + 2 * o_row
        p_nodes = work.p_nodes
        if FORM.CLASS_SUM != "exact":
            p_nodes = work.p_nodes + task.to(tl.int64) * FORM.NODE_SIZE
        factor = _factor(weight, batch, FORM)
        loss = weight * class_gram(
            work.p_student + o_row,
            work.p_teacher + o_row,
            p_rows,
            p_gradient,
            p_nodes,
            classes,
            temperature,
            factor,
            FORM,
        )
        if FORM.GRADIENT:
            o_rows = o_row + tl.zeros((1,), tl.int64)
            unnormalize_gradient_rows(
                work.p_student, work.p_gradient, o_rows, o_rows >= 0, divisor, classes, FORM, FORM.VECTOR_BLOCK
            )
    elif FORM.GRADIENT:
        _zero(p_gradient, classes, FORM)
    tl.store(work.p_unit_loss + task, loss)
    _finish_images(image // work.group_images, FORM.UNITS, 1, work, counters, batch, classes, FORM)


@triton.jit
def _spatial_task(task, student, teacher, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    image = task // FORM.UNITS
    unit = task % FORM.UNITS
    scale, first, weight = _scale_of_unit(unit, FORM)
    wait_for_logits(student, image, FORM.STUDENT)
    wait_for_logits(teacher, image, FORM.TEACHER)
    loss = tl.full((), 0.0, FORM.ACC)
    if weight > 0:
        factor = _factor(weight, batch, FORM)
        if FORM.RESIDENT > 0:
            loss = resident_gram(student, teacher, work, image, first, scale, classes, temperature, factor, FORM)
        else:
            _assemble_scale(student, teacher, work, image, first, scale, classes, FORM)
            start_row = image.to(tl.int64) * FORM.CELLS + first
            loss = _spatial_gram(work, start_row, scale * scale, classes, temperature, factor, FORM)
        loss = weight * loss
    elif FORM.GRADIENT:
        start_row = image.to(tl.int64) * FORM.CELLS + first
        _zero(work.p_gradient + start_row * classes, scale * scale * classes, FORM)
    tl.store(work.p_unit_loss + task, loss)
    _finish_images(image // work.group_images, FORM.UNITS, 1, work, counters, batch, classes, FORM)


@triton.jit
def _assemble_scale(student, teacher, work, image, first, scale, classes, FORM: tl.constexpr):
    """Normalised logits of one image's cells of one scale, of both networks."""
    count = scale * scale
    for start in range(0, count, FORM.PAIR_BLOCK):
        o_local = start + tl.arange(0, FORM.PAIR_BLOCK)
        o_images = o_local * 0 + image
        m_rows = o_local < count
        assemble_rows(
            teacher, work.p_teacher, work.p_teacher_raw, o_images, o_local, m_rows, first, scale, classes,
            FORM.TEACHER, FORM, FORM.PAIR_DEPTH, FORM.PAIR_VECTOR,
        )  # fmt: skip
        divisor = assemble_rows(
            student, work.p_student, work.p_student_raw, o_images, o_local, m_rows, first, scale, classes,
            FORM.STUDENT, FORM, FORM.PAIR_DEPTH, FORM.PAIR_VECTOR,
        )  # fmt: skip
        if FORM.GRADIENT:
            o_divisor = image.to(tl.int64) * FORM.CELLS + first + o_local
            tl.store(work.p_divisor + o_divisor, divisor, mask=m_rows)
    tl.debug_barrier()


@triton.jit
def _spatial_gram(work, start_row, count, classes, temperature, factor, FORM: tl.constexpr):
    """Loss of one image's Gram matrix of one scale; writes its gradient, times `factor`."""
    p_student = work.p_student + start_row * classes
    p_teacher = work.p_teacher + start_row * classes
    p_rows = work.p_rows
    if FORM.GRADIENT:
        p_rows = work.p_rows + 4 * start_row
    losses = tl.zeros((FORM.PAIR_BLOCK,), FORM.ACC)
    blocks = tl.cdiv(count, FORM.PAIR_BLOCK)
    for block in range(blocks):
        o_rows = block * FORM.PAIR_BLOCK + tl.arange(0, FORM.PAIR_BLOCK)
        kl = pair_losses(p_student, p_teacher, p_rows, 4, block, count, classes, classes, temperature, FORM)
        losses += tl.where(o_rows < count, kl, 0.0)
    if FORM.GRADIENT:
        tl.debug_barrier()
        p_gradient = work.p_gradient + start_row * classes
        for block in range(blocks):
            pair_gradient(
                p_student, p_teacher, p_rows, 4, p_gradient, None, 0, block, count, classes, classes, temperature,
                factor, FORM,
            )  # fmt: skip
            o_rows = block * FORM.PAIR_BLOCK + tl.arange(0, FORM.PAIR_BLOCK)
            divisor = tl.load(work.p_divisor + start_row + o_rows, mask=o_rows < count, other=1.0)
            unnormalize_gradient_rows(
                p_student, p_gradient, o_rows.to(tl.int64) * classes, o_rows < count, divisor, classes, FORM,
                FORM.PAIR_VECTOR,
            )  # fmt: skip
    return tl.sum(losses)


@triton.jit
def _sample_task(task, student, teacher, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    blocks = tl.cdiv(batch, FORM.PAIR_BLOCK)
    prepared = batch * FORM.CELLS
    if task < prepared:
        image = task // FORM.CELLS
        cell = task % FORM.CELLS
        scale, first, _ = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
        wait_for_logits(student, image, FORM.STUDENT)
        wait_for_logits(teacher, image, FORM.TEACHER)
        divisor = _normalize_cell(student, teacher, work, image, cell - first, first, scale, classes, FORM)
        if FORM.GRADIENT:
            tl.store(work.p_divisor + task + tl.arange(0, 1), divisor)
        arrive(counters.p_cells + cell // work.group_cells)
    elif task < prepared + FORM.CELLS * blocks:
        _sample_losses(task - prepared, blocks, work, counters, batch, classes, temperature, FORM)
    elif FORM.GRADIENT:
        _sample_gradient(
            task - prepared - FORM.CELLS * blocks, blocks, work, counters, batch, classes, temperature, FORM
        )


@triton.jit
def _sample_losses(unit, blocks, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    """The rows of a block of images in the Gram matrix of one cell."""
    cell = unit // blocks
    block = unit % blocks
    _, _, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    group = cell // work.group_cells
    cells = tl.minimum(work.group_cells, FORM.CELLS - group * work.group_cells)
    wait_for(counters.p_cells + group, cells * batch)
    o_images = block * FORM.PAIR_BLOCK + tl.arange(0, FORM.PAIR_BLOCK)
    kl = tl.zeros((FORM.PAIR_BLOCK,), FORM.ACC)
    if weight > 0:
        p_rows = work.p_rows
        if FORM.GRADIENT:
            p_rows = work.p_rows + 4 * cell
        kl = weight * pair_losses(
            work.p_student + cell * classes, work.p_teacher + cell * classes, p_rows, 4 * FORM.CELLS, block, batch,
            FORM.CELLS * classes, classes, temperature, FORM,
        )  # fmt: skip
    tl.store(work.p_unit_loss + o_images.to(tl.int64) * FORM.CELLS + cell, kl, mask=o_images < batch)
    if FORM.GRADIENT:
        arrive(counters.p_rows + group)
    else:
        _finish_images(
            block * FORM.PAIR_BLOCK // work.group_images, FORM.CELLS, FORM.PAIR_BLOCK, work, counters, batch, classes,
            FORM,
        )  # fmt: skip


@triton.jit
def _sample_gradient(unit, blocks, work, counters, batch, classes, temperature, FORM: tl.constexpr):
    """dl/dz of a block of images at one cell."""
    cell = unit // blocks
    block = unit % blocks
    _, _, weight = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
    group = cell // work.group_cells
    cells = tl.minimum(work.group_cells, FORM.CELLS - group * work.group_cells)
    wait_for(counters.p_rows + group, cells * blocks)
    o_images = block * FORM.PAIR_BLOCK + tl.arange(0, FORM.PAIR_BLOCK)
    if weight > 0:
        p_student = work.p_student + cell * classes
        p_gradient = work.p_gradient + cell * classes
        stride = FORM.CELLS * classes
        pair_gradient(
            p_student, work.p_teacher + cell * classes, work.p_rows + 4 * cell, 4 * FORM.CELLS, p_gradient,
            work.p_upstream, work.stride_upstream, block, batch, stride, classes, temperature,
            _factor(weight, batch, FORM), FORM,
        )  # fmt: skip
        o_divisor = o_images.to(tl.int64) * FORM.CELLS + cell
        divisor = tl.load(work.p_divisor + o_divisor, mask=o_images < batch, other=1.0)
        unnormalize_gradient_rows(
            p_student, p_gradient, o_images.to(tl.int64) * stride, o_images < batch, divisor, classes, FORM,
            FORM.PAIR_VECTOR,
        )  # fmt: skip
    else:
        for image in range(block * FORM.PAIR_BLOCK, tl.minimum((block + 1) * FORM.PAIR_BLOCK, batch)):
            o_row = (tl.full((), 0, tl.int64) + image) * FORM.CELLS + cell
            _zero(work.p_gradient + o_row * classes, classes, FORM)
    _finish_images(
        block * FORM.PAIR_BLOCK // work.group_images, FORM.CELLS, FORM.PAIR_BLOCK, work, counters, batch, classes, FORM
    )


@triton.jit
def _normalize_cell(student, teacher, work, image, local, first, scale, classes, FORM: tl.constexpr):
    """Normalised logits of one cell of both networks; returns the student's divisor, [1]."""
    o_local = local + tl.zeros((1,), tl.int32)
    o_images = image + tl.zeros((1,), tl.int32)
    m_rows = o_local >= 0
    assemble_rows(
        teacher, work.p_teacher, work.p_teacher_raw, o_images, o_local, m_rows, first, scale, classes, FORM.TEACHER,
        FORM, FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
    )  # fmt: skip
    return assemble_rows(
        student, work.p_student, work.p_student_raw, o_images, o_local, m_rows, first, scale, classes, FORM.STUDENT,
        FORM, FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
    )  # fmt: skip


@triton.jit
def _finish_images(group, units, block, work, counters, batch, classes, FORM: tl.constexpr):
    """Counts a task of a group of images; the last one (of `units` per `block` images) finishes these images."""
    start = group * work.group_images
    stop = tl.minimum(start + work.group_images, batch)
    if arrive(counters.p_images + group) == tl.cdiv(stop - start, block) * units - 1:
        tl.debug_barrier()
        for image in range(start, stop):
            o_units = tl.arange(0, FORM.UNIT_BLOCK)
            p_units = work.p_unit_loss + (tl.full((), 0, tl.int64) + image) * FORM.UNITS
            loss = tl.sum(tl.load(p_units + o_units, mask=o_units < FORM.UNITS, other=0.0))
            tl.store(work.p_image_loss + image, loss)
            if FORM.GRADIENT and FORM.FINEST > 0:
                fold_gradient(
                    work.p_gradient, classes * FORM.CELLS, classes, 1, work.p_saved, image, classes, FORM.ACC,
                    FORM.SCALES, FORM.FIRSTS, FORM.FINEST, FORM.PAIR_BLOCK, FORM.PAIR_DEPTH,
                )  # fmt: skip


@triton.jit
def fold_gradient(
    p_gradient, stride_image, stride_cell, stride_class, p_folded, image, classes, ACC: tl.constexpr,
    SCALES: tl.constexpr, FIRSTS: tl.constexpr, FINEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folds one image's dl/dz of all cells onto the finest grid: each cell's share goes to those it is the mean of."""
    wide = tl.full((), 0, tl.int64) + image
    p_image = p_gradient + wide * stride_image
    p_out = p_folded + wide * (FINEST * FINEST) * classes
    for start_cell in range(0, FINEST * FINEST, ROWS):
        o_cells = start_cell + tl.arange(0, ROWS)
        for start in range(0, classes, BLOCK):
            o_classes = start + tl.arange(0, BLOCK)
            m_tile = (o_cells < FINEST * FINEST)[:, None] & (o_classes < classes)[None, :]
            p_classes = p_image + o_classes.to(tl.int64)[None, :] * stride_class
            total = _gather_cells(p_classes, stride_cell, o_cells, m_tile, ACC, SCALES, FIRSTS, FINEST)
            tl.store(p_out + o_cells.to(tl.int64)[:, None] * classes + o_classes[None, :], total, mask=m_tile)


@triton.jit
def _gather_cells(
    p_classes, stride_cell, o_cells, m_tile, ACC: tl.constexpr, SCALES: tl.constexpr, FIRSTS: tl.constexpr,
    FINEST: tl.constexpr,
):  # fmt: skip
    """Sum over every cell that covers places `o_cells` of the finest grid, each over its own size. At most 2 x 2 do."""
    total = tl.zeros(m_tile.shape, ACC)
    for s in tl.static_range(len(SCALES)):
        for place in tl.static_range(4):
            row = window_start(o_cells // FINEST, FINEST, SCALES[s]) + place // 2
            column = window_start(o_cells % FINEST, FINEST, SCALES[s]) + place % 2
            is_row = row < window_stop(o_cells // FINEST, FINEST, SCALES[s])
            is_column = column < window_stop(o_cells % FINEST, FINEST, SCALES[s])
            height = window_stop(row, SCALES[s], FINEST) - window_start(row, SCALES[s], FINEST)
            width = window_stop(column, SCALES[s], FINEST) - window_start(column, SCALES[s], FINEST)
            o_gradient = (FIRSTS[s] + row * SCALES[s] + column).to(tl.int64)[:, None] * stride_cell
            m_gradient = m_tile & (is_row & is_column)[:, None]
            b_gradient = tl.load(p_classes + o_gradient, mask=m_gradient, other=0.0).to(ACC)
            total += b_gradient / (height * width)[:, None]
    return total


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


@triton.jit
def _factor(weight, batch, FORM: tl.constexpr):
    """What every gradient of a Gram matrix is multiplied by: its weight, over the batch for the mean."""
    factor = weight
    if FORM.REDUCTION == "mean":
        factor = weight / batch
    return factor


@triton.jit
def _zero(p_out, count, FORM: tl.constexpr):
    zeros = tl.zeros((FORM.VECTOR_BLOCK,), FORM.ACC)
    for start in range(0, count, FORM.VECTOR_BLOCK):
        o_out = start + tl.arange(0, FORM.VECTOR_BLOCK)
        tl.store(p_out + o_out, zeros, mask=o_out < count)
