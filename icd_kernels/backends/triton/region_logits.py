"""region_logits: local logits of every cell in one launch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

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
    Layouts,
    NetworkPlan,
    gram_precision,
    layouts,
    plan_gram,
    plan_network,
    precision,
    spaces,
)
from icd_kernels.backends.triton.pooling import pool_task, pool_tasks
from icd_kernels.backends.triton.projection import divided, project_task
from icd_kernels.backends.triton.tasks import draw_task, is_last_task, reset
from icd_kernels.checks import compute_dtype
from icd_kernels.problem import CLASS, NONE, GramOptions


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
    layouts: Layouts,
    dtype: torch.dtype,
    products: str,
    scales: tuple[int, ...],
    finest: int,
    save_pooled: bool,
) -> _Plan:
    batch, classes = layouts[0][0][0], layouts[1][0][0]
    network = plan_network(layouts, dtype, products, scales, finest)
    is_direct = finest == 0 and network.division[1] == 1
    if is_direct:
        network = plan_network(layouts, dtype, products, scales, finest, pitch=classes)
    plain = GramOptions(scales, (1.0,) * len(scales), CLASS, (0.0, 0.0), 1.0, NONE)
    form = plan_gram(batch, classes, dtype, plain, False, 0, gram_precision(products), finest, finest).form
    return _Plan(
        network,
        form.CELLS,
        is_direct,
        spaces(0 if save_pooled else network.pooled_size, 0 if is_direct else network.logits_size),
        Launch(
            region_logits_kernel,
            network.tasks + (0 if is_direct else batch * form.CELLS),
            registers=configs.MOST_REGISTERS if dtype == torch.float64 else None,
            NETWORK=network.constants,
            FORM=form,
            SLOT=counter_slots.SLOT,
        ),
    )


def region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int], finest: int, save_pooled: bool
) -> tuple[Tensor, Tensor]:
    """The operator region_logits (icd_kernels/operators.py)."""
    tensors = (features, weight, bias)
    dtype = compute_dtype(*tensors)
    batch, classes = features.shape[0], weight.shape[0]
    plan = plan_region_logits(layouts(tensors), dtype, precision(dtype), tuple(scales), finest, save_pooled)
    network = plan.network
    logits = features.new_empty((batch, plan.cells, classes), dtype=dtype)
    pooled = logits.new_empty((batch, network.constants.CELLS, features.shape[1]) if save_pooled else (0,))
    if batch == 0:
        return logits.transpose(1, 2), pooled
    space = logits.new_empty(sum(plan.spaces))
    slot = counter_slots.counters_for(logits.device)

    def arguments(*tensors: Any) -> tuple[Any, ...]:
        pooled_space, partial = space.split_with_sizes(plan.spaces)
        projected = logits if plan.is_direct else partial
        return (
            network.arguments(*tensors, pooled if save_pooled else pooled_space, projected),
            network.logits(projected, slot.counters.p_student_logits),
            logits,
            slot.counters,
            batch,
            *network.division,
        )

    plan.launch(logits.device, arguments, tensors, (logits, pooled, space, slot.table), slot.stream)
    return logits.transpose(1, 2), pooled
