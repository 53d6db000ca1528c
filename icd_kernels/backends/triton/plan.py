"""What each operator's call needs but tensors, planned once for tensors of one layout and options of one kind."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton import counters as counter_slots
from icd_kernels.backends.triton.chained import gram_kernel, pool_kernel, project_kernel
from icd_kernels.backends.triton.kernels import (
    backward_kernel,
    fold_kernel,
    gram_kl_kernel,
    icd_loss_kernel,
    region_features_backward_kernel,
    region_features_kernel,
    region_logits_kernel,
    scale_kernel,
)
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan_parts import (
    LANGUAGE_DTYPES,
    GramPlan,
    Layout,
    Layouts,
    NetworkPlan,
    ceil_div,
    firsts,
    gram_precision,
    group_rows,
    map_constants,
    math_dtype,
    pitch_of,
    plan_gram,
    plan_network,
    pool_dtype,
    precision,
    spaces,
)
from icd_kernels.backends.triton.structs import NetworkConstants
from icd_kernels.geometry import base_scales
from icd_kernels.problem import CLASS, NONE, GramOptions

SCALE_BLOCK = 1024


class ICDLossPlan(NamedTuple):
    """All that a call needs but tensors."""

    student: NetworkPlan
    teacher: NetworkPlan
    gram: GramPlan
    keeps: bool
    """Whether logits are saved, rather than dl/dz."""
    dtype: torch.dtype
    """That of the math."""
    loss_shape: tuple[int, ...]
    saved_shape: tuple[int, ...]
    pooled_shape: tuple[int, ...]
    spaces: tuple[int, ...]
    space: int
    """Numbers of workspace, in pieces of `spaces`."""
    classes: int
    launches: tuple[Launch, ...]
    """One, or a chain of three."""


@lru_cache(maxsize=1024)
def plan_icd_loss(
    networks: Layouts,
    device: torch.device,
    setting: str,
    class_sum: str,
    options: GramOptions,
    student_finest: int,
    teacher_finest: int,
    save_gradient: bool,
    save_pooled: bool,
) -> ICDLossPlan:
    """`networks`: features, weight and bias of the student, then of the teacher; `setting`: see :func:`precision`."""
    student_layouts, teacher_layouts = networks[:3], networks[3:]
    batch, classes = student_layouts[0][0][0], student_layouts[1][0][0]
    dtype = math_dtype(networks)
    products = precision(dtype, setting)
    student = plan_network(student_layouts, dtype, products, options.scales, student_finest, device)
    teacher = plan_network(teacher_layouts, dtype, products, options.scales, teacher_finest, device)
    keeps = options.keeps_logits and save_gradient
    gradient = save_gradient and not keeps
    plan = plan_gram(
        batch, classes, dtype, options, gradient, 0 if options.keeps_logits else student_finest,
        gram_precision(products), student_finest, teacher_finest, class_sum, configs.double_cost(device),
    )  # fmt: skip
    cells, base, pitch = plan.form.CELLS, student.constants.CELLS, pitch_of(classes)
    saved_shape = (2, batch, cells, classes) if keeps else (batch, base, pitch)
    image = batch * cells * pitch
    sizes = spaces(
        teacher.pooled_size, 0 if save_pooled else student.pooled_size, teacher.logits_size, student.logits_size,
        image, image, batch * cells, plan.rows_size, batch * plan.units, 0 if options.reduction == NONE else batch,
        image if plan.form.FINEST > 0 and gradient else 0,
    )  # fmt: skip
    return ICDLossPlan(
        student=student,
        teacher=teacher,
        gram=plan,
        keeps=keeps,
        dtype=dtype,
        loss_shape=(batch,) if options.reduction == NONE else (),
        saved_shape=saved_shape if save_gradient else (0,),
        pooled_shape=(batch, base, student_layouts[0][0][1]) if save_pooled else (0,),
        spaces=sizes,
        space=sum(sizes),
        classes=classes,
        launches=_forward_launches(student, teacher, plan, options.gram, classes, dtype),
    )


def _forward_launches(
    student: NetworkPlan, teacher: NetworkPlan, plan: GramPlan, gram: int, classes: int, dtype: torch.dtype
) -> tuple[Launch, ...]:
    constants: dict[str, Any] = {
        "STUDENT": student.constants, "TEACHER": teacher.constants, "FORM": plan.form, "SLOT": counter_slots.SLOT
    }  # fmt: skip
    pools, projections = (student.pool_tasks + teacher.pool_tasks), (student.project_tasks + teacher.project_tasks)
    registers, of_gram = configs.registers(gram, classes, dtype), configs.gram_registers(gram, classes, dtype)
    if configs.LAUNCHES == 1:
        return (Launch(icd_loss_kernel, pools + projections + plan.tasks, registers=registers, **constants),)
    return (
        Launch(pool_kernel, pools, **constants),
        Launch(project_kernel, projections, registers=registers, is_chained=True, **constants),
        Launch(gram_kernel, plan.tasks, registers=of_gram, is_chained=True, **constants),
    )


class RegionLogitsPlan(NamedTuple):
    """All that a call needs but tensors."""

    network: NetworkPlan
    dtype: torch.dtype
    cells: int
    is_direct: bool
    """Whether the projection already writes the logits."""
    spaces: tuple[int, ...]
    launch: Launch


@lru_cache(maxsize=1024)
def plan_region_logits(
    layouts: Layouts,
    device: torch.device,
    setting: str,
    scales: tuple[int, ...],
    finest: int,
    save_pooled: bool,
) -> RegionLogitsPlan:
    dtype = math_dtype(layouts)
    products = precision(dtype, setting)
    batch, classes = layouts[0][0][0], layouts[1][0][0]
    network = plan_network(layouts, dtype, products, scales, finest, device)
    is_direct = finest == 0 and network.division[1] == 1
    if is_direct:
        network = plan_network(layouts, dtype, products, scales, finest, device, pitch=classes)
    plain = GramOptions(scales, (1.0,) * len(scales), CLASS, (0.0, 0.0), 1.0, NONE)
    form = plan_gram(batch, classes, dtype, plain, False, 0, gram_precision(products), finest, finest).form
    return RegionLogitsPlan(
        network,
        dtype,
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


@lru_cache(maxsize=1024)
def plan_gram_kl(
    student: Layout,
    teacher: Layout,
    raw: Layout | None,
    upstream: Layout | None,
    device: torch.device,
    dtype: torch.dtype,
    setting: str,
    class_sum: str,
    options: GramOptions,
    gradient: bool,
    finest: int,
) -> tuple[GramPlan, tuple[int, ...], Launch]:
    """The Gram stage, its workspace and its launch."""
    batch, cells, classes = student.shape
    plan = plan_gram(
        batch, classes, dtype, options, gradient, finest, gram_precision(precision(dtype, setting)), 0, 0, class_sum,
        configs.double_cost(device),
    )  # fmt: skip
    image = batch * cells * pitch_of(classes)
    sizes = spaces(
        image, image, batch * cells, plan.rows_size, batch * plan.units, 0 if options.reduction == NONE else batch,
        image if finest else 0,
    )  # fmt: skip
    registers = configs.gram_registers(options.gram, classes, dtype)
    return plan, sizes, Launch(gram_kl_kernel, plan.tasks, registers=registers, FORM=plan.form, SLOT=counter_slots.SLOT)


@lru_cache(maxsize=1024)
def plan_scale(saved: Layout, dtype: torch.dtype, upstream: Layout | None) -> Launch:
    batch, cells, classes = saved.shape
    return Launch(scale_kernel, batch * ceil_div(cells * classes, SCALE_BLOCK), BLOCK=SCALE_BLOCK)


class BackwardPlan(NamedTuple):
    """All that a call needs but tensors."""

    numbers: tuple[int, ...]
    """Those of `Backward`, in its order."""
    division: tuple[int, int]
    """Images whose cells are rows of one product, and parts that the weight's gradient is summed in."""
    spaces: tuple[int, ...]
    launch: Launch


@lru_cache(maxsize=1024)
def plan_backward(
    tensors: Layouts,
    outputs: Any,
    bias_dtype: torch.dtype,
    scales: tuple[int, ...],
    finest: int,
    wanted: tuple[bool, bool, bool],
    device: torch.device,
    setting: str,
) -> BackwardPlan:
    """`tensors`: dl/dz, the upstream gradient and the weight; `outputs`, `bias_dtype`: of the gradients to write."""
    gradient, weight, features = Layout(*tensors[0]), Layout(*tensors[2]), Layout(*outputs)
    upstream = None if tensors[1] is None else Layout(*tensors[1])
    by_features, by_weight, by_bias = wanted
    classes, channels = weight.shape
    batch = features.shape[0]
    products = precision(gradient.dtype, setting)
    constants = backward_constants(gradient, features, base_scales(scales, finest), products, device)
    group_images = group_rows(batch, constants.CELLS, constants.ROW_BLOCK)
    group_tiles = ceil_div(group_images * constants.CELLS, constants.ROW_BLOCK)
    blocks = ceil_div(channels, constants.CLASS_BLOCK)
    cells = ceil_div(batch, group_images) * group_tiles * blocks if by_features else 0
    tiles = ceil_div(classes, constants.ROW_BLOCK) * (blocks if by_weight else 1) if by_weight or by_bias else 0
    rows = batch * constants.CELLS
    splits = configs.splits(tiles, rows, constants.DEPTH_BLOCK, configs.WEIGHT_SPREAD)
    scatter = batch * ceil_div(channels, constants.CHANNEL_BLOCK) if by_features else 0
    stride_upstream = 0 if upstream is None or not upstream.shape else upstream.stride[0]
    return BackwardPlan(
        numbers=(
            *(*gradient.stride, stride_upstream, *weight.stride, *features.stride),
            *(classes, channels, gradient.shape[2]),
        ),
        division=(group_images, splits),
        spaces=spaces(
            batch * constants.CELLS * channels if by_features else 0,
            0 if splits == 1 else splits * classes * (channels * by_weight + 1),
        ),
        launch=Launch(
            backward_kernel,
            cells + tiles * splits + scatter,
            registers=configs.backward_registers(gradient.dtype),
            CONSTANTS=constants,
            SLOT=counter_slots.SLOT,
        ),
    )


def backward_constants(
    gradient: Layout, features: Layout, base: tuple[int, ...], products: str, device: torch.device
) -> NetworkConstants:
    """What the kernel is compiled for."""
    accumulates = LANGUAGE_DTYPES[gradient.dtype]
    row_block, class_block, depth_block = configs.backward_blocks(gradient.dtype, products, device)
    constants = map_constants(features, gradient.dtype, accumulates, base)
    return constants._replace(
        ROWS_APART=gradient.stride[0] != constants.CELLS * gradient.stride[1],
        PRECISION=products,
        CHANNEL_BLOCK=configs.channel_block(features.shape[1], constants.CELLS, 8 * features.dtype.itemsize),
        ROW_BLOCK=row_block,
        CLASS_BLOCK=class_block,
        DEPTH_BLOCK=depth_block,
    )


@lru_cache(maxsize=1024)
def plan_fold(gradient: Layout, scales: tuple[int, ...], finest: int) -> Launch:
    return Launch(
        fold_kernel, gradient.shape[0], ACC=LANGUAGE_DTYPES[gradient.dtype], SCALES=scales, FIRSTS=firsts(scales),
        FINEST=finest, ROWS=configs.POINT_BLOCK, BLOCK=configs.POINT_DEPTH,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def plan_region_features(features: Layout, dtype: torch.dtype, scales: tuple[int, ...]) -> Launch:
    constants = map_constants(features, dtype, pool_dtype(features.dtype, dtype), scales)
    batch, channels = features.shape[:2]
    blocks = ceil_div(constants.CELLS, constants.CELL_BLOCK) * ceil_div(channels, constants.CHANNEL_BLOCK)
    return Launch(region_features_kernel, batch * blocks, NETWORK=constants)


@lru_cache(maxsize=1024)
def plan_region_features_backward(features: Layout, dtype: torch.dtype, scales: tuple[int, ...]) -> Launch:
    constants = map_constants(features, dtype, LANGUAGE_DTYPES[dtype], scales)
    batch, channels = features.shape[:2]
    return Launch(
        region_features_backward_kernel, batch * ceil_div(channels, constants.CHANNEL_BLOCK), CONSTANTS=constants
    )


def forget() -> None:
    """Forgets every plan; call it after a change of what they depend on (:mod:`.configs`)."""
    for planned in (
        plan_icd_loss,
        plan_region_logits,
        plan_gram_kl,
        plan_scale,
        plan_backward,
        plan_fold,
        plan_region_features,
        plan_region_features_backward,
    ):
        planned.cache_clear()
