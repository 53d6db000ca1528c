"""The kernels: what each launch's tasks are, in their order. What a task does stands in the files beside this one."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cell_gradient import cell_task, cell_tasks
from icd_kernels.backends.triton.cells import scale_of_cell, store
from icd_kernels.backends.triton.fold import fold_gradient
from icd_kernels.backends.triton.gram_stage import gram_task, reduce_losses
from icd_kernels.backends.triton.logits import assemble_rows, wait_for_logits
from icd_kernels.backends.triton.pool import pool_task, pool_tasks
from icd_kernels.backends.triton.project import divided, project_task
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.backends.triton.unpool import unpool_channels, unpool_task
from icd_kernels.backends.triton.weight_gradient import weight_task, weight_tasks

# They follow from the batch: compiled for one of them, a kernel would be compiled again for an epoch's last batch.
BATCH_NUMBERS = ["batch", "student_group", "student_splits", "teacher_group", "teacher_splits", "wants_gradient"]


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def icd_loss_kernel(
    student,
    teacher,
    student_logits,
    teacher_logits,
    work,
    counters,
    batch,
    student_group,
    student_splits,
    teacher_group,
    teacher_splits,
    wants_gradient,
    temperature: tl.float64,
    STUDENT: tl.constexpr,
    TEACHER: tl.constexpr,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """The whole loss."""
    icd_loss_task(
        draw_task(counters), student, teacher, student_logits, teacher_logits, work, counters, batch, student_group,
        student_splits, teacher_group, teacher_splits, wants_gradient, temperature, STUDENT, TEACHER, FORM, SLOT,
    )  # fmt: skip


@triton.jit
def icd_loss_task(
    task, student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
    teacher_group, teacher_splits, wants_gradient, temperature, STUDENT: tl.constexpr, TEACHER: tl.constexpr,
    FORM: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """Tasks in order: pool teacher, pool student, project teacher, project student, Gram stage.

    Conditions stand beside each other: nested, each level doubles the time some passes of the compiler take.
    """
    student_division = divided(student, student_group, student_splits, STUDENT)
    teacher_division = divided(teacher, teacher_group, teacher_splits, TEACHER)
    first_student_pool = batch * pool_tasks(teacher, TEACHER)
    first_project = first_student_pool + batch * pool_tasks(student, STUDENT)
    first_student_project = first_project + tl.cdiv(batch, teacher_group) * teacher_division[2]
    first_gram = first_student_project + tl.cdiv(batch, student_group) * student_division[2]
    if task < first_student_pool:
        pool_task(task, teacher, counters.p_teacher_pooled, teacher_group, TEACHER)
    if (task >= first_student_pool) & (task < first_project):
        pool_task(task - first_student_pool, student, counters.p_student_pooled, student_group, STUDENT)
    if (task >= first_project) & (task < first_student_project):
        project_task(
            task - first_project, teacher, counters.p_teacher_pooled, counters.p_teacher_logits, batch,
            teacher_division, TEACHER,
        )  # fmt: skip
    if (task >= first_student_project) & (task < first_gram):
        project_task(
            task - first_student_project, student, counters.p_student_pooled, counters.p_student_logits, batch,
            student_division, STUDENT,
        )  # fmt: skip
    if task >= first_gram:
        gram_task(
            task - first_gram, student_logits, teacher_logits, student_division, teacher_division, work, counters,
            batch, temperature, wants_gradient, FORM,
        )  # fmt: skip
    if task >= first_gram:
        if is_last_task(counters, first_gram):
            reduce_losses(work, batch, FORM)
            reset(counters, SLOT)


@triton.jit(do_not_specialize=["batch", "group_images", "splits"])
def region_logits_kernel(
    network,
    source,
    p_logits,
    counters,
    batch,
    group_images,
    splits,
    NETWORK: tl.constexpr,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """Tasks in order: pool, project, and, unless that already wrote `p_logits`, assemble every cell of every image."""
    division = divided(network, group_images, splits, NETWORK)
    task = draw_task(counters)
    first_project = batch * pool_tasks(network, NETWORK)
    first_cell = first_project + tl.cdiv(batch, group_images) * division[2]
    if task < first_project:
        pool_task(task, network, counters.p_student_pooled, group_images, NETWORK)
    elif task < first_cell:
        project_task(
            task - first_project, network, counters.p_student_pooled, counters.p_student_logits, batch, division,
            NETWORK,
        )  # fmt: skip
    else:
        image = (task - first_cell) // FORM.CELLS
        cell = (task - first_cell) % FORM.CELLS
        scale, first, _ = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
        wait_for_logits(source, division, image)
        local = cell - first + tl.zeros((1,), tl.int32)
        assemble_rows(
            source, division, p_logits, None, image + tl.zeros((1,), tl.int32), local, local >= 0, first, scale, batch,
            network.classes, network.classes, FORM.STUDENT_FINEST, FORM, FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
        )  # fmt: skip
    last_kind = tl.where(first_cell == tl.num_programs(0), first_project, first_cell)
    if task >= last_kind:
        if is_last_task(counters, last_kind):
            reset(counters, SLOT)


@triton.jit(do_not_specialize=["batch", "wants_gradient"])
def gram_kl_kernel(
    student,
    teacher,
    work,
    counters,
    batch,
    wants_gradient,
    temperature: tl.float64,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """The tasks of the Gram stage, on logits that nothing has divided."""
    whole = (1, 1, 0)
    gram_task(
        draw_task(counters), student, teacher, whole, whole, work, counters, batch, temperature, wants_gradient, FORM
    )
    if is_last_task(counters, 0):
        reduce_losses(work, batch, FORM)
        reset(counters, SLOT)


@triton.jit
def scale_kernel(
    p_out, p_gradient, stride_image, stride_cell, stride_class, p_upstream, stride_upstream, cells, classes,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Every image's dl/dz times its upstream gradient, where one is given."""
    size = cells * classes
    blocks = tl.cdiv(size, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    o_image = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    m_image = o_image < size
    p_numbers = p_gradient + image * stride_image + o_image // classes * stride_cell + o_image % classes * stride_class
    b_gradient = tl.load(p_numbers, mask=m_image)
    if p_upstream is not None:
        b_gradient *= tl.load(p_upstream + image * stride_upstream).to(b_gradient.dtype)
    store(p_out + image * size + o_image, b_gradient, m_image)


@triton.jit(do_not_specialize=["batch", "group_images", "splits"])
def backward_kernel(job, counters, batch, group_images, splits, CONSTANTS: tl.constexpr, SLOT: tl.constexpr):
    """Tasks in order: gradient by pooled features, by weight and bias, and the former scattered to the pixels."""
    cells = tl.full((), 0, tl.int32)
    if job.p_features is not None:
        cells = tl.cdiv(batch, group_images) * cell_tasks(job, group_images, CONSTANTS)
    task = draw_task(counters)
    weight = task - cells
    scatter = weight - weight_tasks(job, splits, CONSTANTS)
    if weight < 0:
        cell_task(task, job, counters, batch, group_images, CONSTANTS)
    elif scatter < 0:
        weight_task(weight, job, counters, batch, splits, CONSTANTS)
    else:
        if job.p_features is not None:
            unpool_task(scatter, job, counters, group_images, CONSTANTS)
    if weight >= 0:
        if is_last_task(counters, cells):
            reset(counters, SLOT)


@triton.jit
def fold_kernel(
    p_gradient, stride_image, stride_cell, stride_class, p_folded, classes, pitch, ACC: tl.constexpr,
    SCALES: tl.constexpr, FIRSTS: tl.constexpr, FINEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folds gradients by every cell's logits onto the finest grid, an image for each program."""
    fold_gradient(
        p_gradient, stride_image, stride_cell, stride_class, p_folded, tl.program_id(0), classes, pitch, ACC, SCALES,
        FIRSTS, FINEST, ROWS, BLOCK,
    )  # fmt: skip


@triton.jit
def region_features_kernel(network, NETWORK: tl.constexpr):
    """Pools a block of channels of one image over a block of its cells."""
    pool_task(tl.program_id(0), network, None, 1, NETWORK)


@triton.jit
def region_features_backward_kernel(job, CONSTANTS: tl.constexpr):
    """Scatters a block of channels of one image's gradient to its pixels."""
    channel_blocks = tl.cdiv(job.channels, CONSTANTS.CHANNEL_BLOCK)
    image = tl.program_id(0) // channel_blocks
    o_channels = (tl.program_id(0) % channel_blocks) * CONSTANTS.CHANNEL_BLOCK + tl.arange(0, CONSTANTS.CHANNEL_BLOCK)
    unpool_channels(image, o_channels, (o_channels < job.channels)[None, :], job, True, CONSTANTS)
