"""region_logits: local logits of every cell in one launch."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.cells import scale_of_cell
from icd_kernels.backends.triton.launch import launch
from icd_kernels.backends.triton.logits import assemble_rows, wait_for_logits
from icd_kernels.backends.triton.plan import gram_precision, plan_gram, plan_network, workspace
from icd_kernels.backends.triton.pooling import pool_task
from icd_kernels.backends.triton.projection import project_task
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.checks import compute_dtype


@triton.jit
def region_logits_kernel(
    network,
    source,
    p_logits,
    counters,
    batch,
    classes,
    NETWORK: tl.constexpr,
    FORM: tl.constexpr,
    SLOT: tl.constexpr,
):
    """Tasks in order: pool, project, and, unless that already wrote `p_logits`, assemble every cell of every image."""
    task = draw_task(counters)
    project = task - network.pool_tasks
    cell_task = project - network.project_tasks
    if project < 0:
        pool_task(task, network, counters.p_student_pooled, NETWORK)
    elif cell_task < 0:
        project_task(project, network, counters.p_student_pooled, counters.p_student_logits, batch, classes, NETWORK)
    else:
        image = cell_task // FORM.CELLS + tl.zeros((1,), tl.int32)
        cell = cell_task % FORM.CELLS
        scale, first, _ = scale_of_cell(cell, FORM.SCALES, FORM.FIRSTS, FORM.WEIGHTS, FORM.ACC)
        wait_for_logits(source, cell_task // FORM.CELLS)
        local = cell - first + tl.zeros((1,), tl.int32)
        assemble_rows(
            source, p_logits, None, image, local, local >= 0, first, scale, classes, FORM.STUDENT, FORM,
            FORM.VECTOR_BLOCK, FORM.VECTOR_BLOCK,
        )  # fmt: skip
    first = task - cell_task
    first = tl.where(first == tl.num_programs(0), network.pool_tasks, first)
    if task >= first:
        if is_last_task(counters, first):
            reset(counters, SLOT)


def region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int], pyramid: str, save_pooled: bool
) -> tuple[Tensor, Tensor]:
    """The operator region_logits (icd_kernels/operators.py)."""
    dtype = compute_dtype(features, weight, bias)
    batch, classes = features.shape[0], weight.shape[0]
    network = plan_network(features, weight, dtype, scales, pyramid)
    constants = network.logits_constants
    form = plan_gram(
        batch, classes, dtype, tuple(scales), (1.0,) * len(scales), "class", "none", "none", False, 0,
        gram_precision(dtype), constants, constants,
    ).form  # fmt: skip
    logits = features.new_empty((batch, form.CELLS, classes), dtype=dtype)
    pooled_shape = (batch, network.constants.CELLS, features.shape[1])
    pooled = features.new_empty(pooled_shape if save_pooled else (0,), dtype=dtype)
    if batch == 0:
        return logits.transpose(1, 2), pooled
    is_direct = network.finest == 0 and network.constants.SPLITS == 1
    sizes = (0 if save_pooled else network.pooled_size, 0 if is_direct else network.logits_size)
    pooled_space, partial = workspace(logits, dtype, *sizes)
    projected = logits if is_direct else partial
    slots = counter_slots.counters_for(logits.device)
    launch(
        region_logits_kernel,
        network.pool_tasks + network.project_tasks + (0 if is_direct else batch * form.CELLS),
        logits.device,
        network.arguments(features, weight, bias, pooled if save_pooled else pooled_space, projected),
        network.logits(projected, slots.p_student_logits, batch, classes),
        logits,
        slots,
        batch,
        classes,
        NETWORK=network.constants,
        FORM=form,
        SLOT=counter_slots.SLOT,
    )
    return logits.transpose(1, 2), pooled
