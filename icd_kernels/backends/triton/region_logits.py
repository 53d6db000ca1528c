"""region_logits: local logits of every cell in one launch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.cells import scale_of_cell
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.logits import assemble_rows, wait_for_logits
from icd_kernels.backends.triton.plan import (
    Layout,
    NetworkPlan,
    gram_precision,
    layout,
    plan_gram,
    plan_network,
    precision,
    spaces,
    workspace,
)
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
        wait_for_logits(source, cell_task // FORM.CELLS, FORM.STUDENT)
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


class _Plan(NamedTuple):
    """All that a call needs but tensors."""

    network: NetworkPlan
    cells: int
    is_direct: bool
    """Whether the projection already writes the logits."""
    spaces: tuple[int, ...]
    launch: Launch


@lru_cache(maxsize=1024)
def plan_region_logits(
    features: Layout,
    weight: Layout,
    bias: Layout | None,
    dtype: torch.dtype,
    products: str,
    scales: tuple[int, ...],
    pyramid: str,
    save_pooled: bool,
) -> _Plan:
    batch, classes = features.shape[0], weight.shape[0]
    network = plan_network(features, weight, bias, dtype, products, scales, pyramid)
    constants = network.logits_constants
    form = plan_gram(
        batch, classes, dtype, scales, (1.0,) * len(scales), "class", "none", "none", False, 0,
        gram_precision(products), constants, constants,
    ).form  # fmt: skip
    is_direct = network.finest == 0 and network.constants.SPLITS == 1
    return _Plan(
        network,
        form.CELLS,
        is_direct,
        spaces(0 if save_pooled else network.pooled_size, 0 if is_direct else network.logits_size),
        Launch(
            region_logits_kernel,
            network.pool_tasks + network.project_tasks + (0 if is_direct else batch * form.CELLS),
            registers=configs.MOST_REGISTERS if dtype == torch.float64 else None,
            NETWORK=network.constants,
            FORM=form,
            SLOT=counter_slots.SLOT,
        ),
    )


def region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int], pyramid: str, save_pooled: bool
) -> tuple[Tensor, Tensor]:
    """The operator region_logits (icd_kernels/operators.py)."""
    tensors = (features, weight, bias)
    dtype = compute_dtype(*tensors)
    batch, classes = features.shape[0], weight.shape[0]
    plan = plan_region_logits(*map(layout, tensors), dtype, precision(dtype), tuple(scales), pyramid, save_pooled)
    network = plan.network
    logits = features.new_empty((batch, plan.cells, classes), dtype=dtype)
    pooled = logits.new_empty((batch, network.constants.CELLS, features.shape[1]) if save_pooled else (0,))
    if batch == 0:
        return logits.transpose(1, 2), pooled
    pooled_space, partial = workspace(logits, dtype, plan.spaces)
    projected = logits if plan.is_direct else partial
    slots = counter_slots.counters_for(logits.device)
    plan.launch(
        logits.device,
        network.arguments(features, weight, bias, pooled if save_pooled else pooled_space, projected),
        network.logits(projected, slots.p_student_logits),
        logits,
        slots,
        batch,
        classes,
        given=tensors,
    )
    return logits.transpose(1, 2), pooled
