"""What the programs of the Triton backend load and store: both launches of a training step, from their plans.

One function for each kind of task, in the order of the kernels (`icd_kernels/backends/triton`), and in each an entry
for every tile that is read or written. Elements are counted where the mask holds, so the shape of a tile shows only in
how often a buffer is read again: pooled features once for every block of classes, a weight once for every tile of rows.
What the values decide (which sums of class form are taken, which divergences are summed again) is given as `Sums`.

Counters, and the slow way of pooling maps with NaN or inf in them, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from benchmarks.accesses import DZ, EVERY_DZ, NODES, Access, Launch, LinearSum, Problem, Sums, loads, stores
from benchmarks.gram_accesses import gram, node_bytes, used_rows
from icd_kernels.backends.triton import backward as backward_launcher
from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import icd_loss as forward_launcher
from icd_kernels.backends.triton.plan import Layout, NetworkPlan, ceil_div, precision
from icd_kernels.backends.triton.structs import Backward, NetworkConstants

POOLED = "student's pooled features"
UPSTREAM = "upstream gradient"
CELLS = "gradient by the pooled features"
PARTS = "parts of the weight's gradient"


def plan_forward(problem: Problem) -> forward_launcher._Plan:
    options, dtype = problem.options, problem.dtype
    return forward_launcher.plan_icd_loss(
        *problem.tensors, torch.device("meta"), dtype, precision(dtype), configs.class_sum(problem.classes),
        options.scales, options.scale_weights, options.gram, options.pyramid, options.normalize, options.reduction,
        True, True,
    )  # fmt: skip


def forward(problem: Problem, sums: Sums) -> Launch:
    """The launch of `icd_loss_kernel`."""
    plan = plan_forward(problem)
    accesses = [*pool(problem, "teacher", plan.teacher), *pool(problem, "student", plan.student)]
    accesses += [*project(problem, "teacher", plan.teacher), *project(problem, "student", plan.student)]
    accesses += gram(problem, plan.gram, sums)
    nodes = torch.float64.itemsize * plan.gram.nodes_size
    workspace = problem.dtype.itemsize * sum(plan.spaces) + nodes
    return Launch(tuple(accesses), forward_sizes(problem, plan, sums), workspace)


def forward_sizes(problem: Problem, plan: forward_launcher._Plan, sums: Sums) -> dict[str, int]:
    """As far as scales of weight 0 leave them used."""
    form, batch, classes = plan.gram.form, problem.batch, problem.classes
    rows = used_rows(problem, form)
    elements = {
        "student's pooled features": plan.student.pooled_size,
        "teacher's pooled features": plan.teacher.pooled_size,
        "student's projected logits": plan.student.logits_size,
        "teacher's projected logits": plan.teacher.logits_size,
        "student's logits": rows * classes,
        "teacher's logits": rows * classes,
        "norms": rows,
        "normalisers of rows": rows * (2 * classes if form.GRAM == "class" else 4),
        "losses of matrices": batch * plan.gram.units,
        "losses of images": batch,
        "loss": batch if form.REDUCTION == "none" else 1,
        DZ: batch * plan.student.constants.CELLS * classes,
        EVERY_DZ: batch * form.CELLS * classes,
    }
    sizes = {buffer: count * problem.dtype.itemsize for buffer, count in elements.items()}
    sizes[NODES] = sum(count * node_bytes(kind) for kind, count in sums.items() if isinstance(kind, LinearSum))
    return {**sizes, **input_sizes(problem, "student"), **input_sizes(problem, "teacher")}


def input_sizes(problem: Problem, name: str) -> dict[str, int]:
    named = zip(("features", "weight", "bias"), problem.network(name), strict=True)
    return {
        f"{name}'s {what}": torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
        for what, tensor in named
        if tensor is not None
    }


def pool(problem: Problem, name: str, plan: NetworkPlan) -> Iterator[Access]:
    """`pool_task`: a map is read once for every block of its cells."""
    features, _, _ = problem.network(name)
    cell_blocks = ceil_div(plan.constants.CELLS, plan.constants.CELL_BLOCK)
    yield loads("pool", f"{name}'s features", cell_blocks * torch.Size(features.shape).numel(), features.dtype)
    yield stores("pool", f"{name}'s pooled features", plan.pooled_size, problem.dtype)


def project(problem: Problem, name: str, plan: NetworkPlan) -> Iterator[Access]:
    """`project_task`: cells once for every block of classes, the head once for every tile of rows."""
    _, weight, bias = problem.network(name)
    class_blocks = ceil_div(problem.classes, plan.constants.CLASS_BLOCK)
    row_tiles = plan.project_tasks // (class_blocks * plan.constants.SPLITS)
    yield loads("project", f"{name}'s pooled features", class_blocks * plan.pooled_size, problem.dtype)
    yield loads("project", f"{name}'s weight", row_tiles * torch.Size(weight.shape).numel(), weight.dtype)
    if bias is not None:
        yield loads("project", f"{name}'s bias", row_tiles * problem.classes, bias.dtype)
    yield stores("project", f"{name}'s projected logits", plan.logits_size, problem.dtype)


class BackwardPlan(NamedTuple):
    """The backward's launch in numbers."""

    job: Backward
    constants: NetworkConstants
    spaces: tuple[int, ...]
    rows: int
    """Base cells of all images."""
    row_tiles: int
    """Of groups of images, for the gradient by the pooled features."""
    class_blocks: int
    channel_blocks: int
    """For the gradient by the weight, as `class_blocks` is."""
    splits: int


def plan_backward(problem: Problem) -> BackwardPlan:
    features, weight, bias = problem.network("student")
    options, dtype, batch, classes = problem.options, problem.dtype, problem.batch, problem.classes
    cells = plan_forward(problem).student.constants.CELLS
    saved = Layout((batch, cells, classes), (cells * classes, classes, 1), dtype)
    upstream = Layout((batch,), (1,), dtype) if options.reduction == "none" else Layout((), (), dtype)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    arguments = options.scales, options.pyramid
    plan = backward_launcher.plan_backward(
        saved, upstream, weight, features, bias_dtype, *arguments, (True, True, bias is not None), precision(dtype)
    )
    constants = backward_launcher.backward_constants(saved, features, *arguments, precision(dtype))
    tensors = len(Backward._fields) - len(plan.numbers)
    job = Backward(*(None,) * tensors, *plan.numbers)
    class_blocks = ceil_div(classes, constants.ROW_BLOCK)
    channel_blocks = ceil_div(features.shape[1], constants.CLASS_BLOCK)
    row_tiles, splits = job.cell_tasks // channel_blocks, job.weight_tasks // (class_blocks * channel_blocks)
    return BackwardPlan(job, constants, plan.spaces, batch * cells, row_tiles, class_blocks, channel_blocks, splits)


def backward(problem: Problem) -> Launch:
    """The launch of `backward_kernel`."""
    plan = plan_backward(problem)
    accesses = (*cell_tasks(problem, plan), *weight_tasks(problem, plan), *scatter_tasks(problem, plan))
    return Launch(accesses, backward_sizes(problem, plan), problem.dtype.itemsize * sum(plan.spaces))


def backward_sizes(problem: Problem, plan: BackwardPlan) -> dict[str, int]:
    inputs = input_sizes(problem, "student")
    channels = plan.job.channels
    elements = {
        DZ: plan.rows * problem.classes,
        UPSTREAM: problem.batch if problem.options.reduction == "none" else 1,
        POOLED: plan.rows * channels,
        CELLS: plan.rows * channels,
        PARTS: plan.splits * problem.classes * (channels + 1),
    }
    sizes = {buffer: count * problem.dtype.itemsize for buffer, count in elements.items()}
    gradients = {f"gradient by the {buffer}": size for buffer, size in inputs.items()}
    return {**sizes, **inputs, **gradients}


def upstream(problem: Problem, part: str, rows: int, tasks: int) -> Access:
    """A row's upstream gradient with every tile of rows, or the one of all images once for every task."""
    elements = rows if problem.options.reduction == "none" else tasks
    return loads(part, UPSTREAM, elements, problem.dtype)


def cell_tasks(problem: Problem, plan: BackwardPlan) -> Iterator[Access]:
    """`cell_task`: dl/dz once for every block of channels, the weight once for every tile of rows."""
    weight, rows, blocks = problem.network("student")[1], plan.rows, plan.channel_blocks
    yield loads("cells", DZ, blocks * rows * problem.classes, problem.dtype)
    yield loads("cells", "student's weight", plan.row_tiles * torch.Size(weight.shape).numel(), weight.dtype)
    yield upstream(problem, "cells", blocks * rows, plan.job.cell_tasks)
    yield stores("cells", CELLS, rows * plan.job.channels, problem.dtype)


def weight_tasks(problem: Problem, plan: BackwardPlan) -> Iterator[Access]:
    """`weight_task`: dl/dz once for every block of channels, pooled features once for every block of classes."""
    _, weight, bias = problem.network("student")
    rows, blocks, classes, channels = plan.rows, plan.channel_blocks, problem.classes, plan.job.channels
    tiles = plan.class_blocks * blocks
    yield loads("weight", DZ, blocks * rows * classes, problem.dtype)
    yield loads("weight", POOLED, plan.class_blocks * rows * channels, problem.dtype)
    yield upstream(problem, "weight", tiles * rows, tiles)
    if plan.splits > 1:
        parts = plan.splits * classes * (channels + 1)
        yield stores("weight", PARTS, parts, problem.dtype)
        yield loads("weight", PARTS, parts, problem.dtype)
    yield stores("weight", "gradient by the student's weight", classes * channels, weight.dtype)
    if bias is not None:
        yield stores("weight", "gradient by the student's bias", classes, bias.dtype)


def scatter_tasks(problem: Problem, plan: BackwardPlan) -> Iterator[Access]:
    """`scatter_task`: cells once for every block of pixels."""
    features, _, _ = problem.network("student")
    constants = plan.constants
    pixel_blocks = ceil_div(constants.HEIGHT * constants.WIDTH, constants.PIXEL_BLOCK)
    yield loads("scatter", CELLS, pixel_blocks * plan.rows * plan.job.channels, problem.dtype)
    yield stores("scatter", "gradient by the student's features", torch.Size(features.shape).numel(), features.dtype)
