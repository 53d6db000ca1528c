"""What a launch needs, from tensors and options: sizes, strides, blocks, workspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton import configs
from icd_kernels.backends.triton.exact_class import ROW_VALUES
from icd_kernels.backends.triton.operators import interprets
from icd_kernels.backends.triton.structs import GROUPS, PITCH, Form, Logits, Network, NetworkConstants
from icd_kernels.geometry import base_scales, cell_count
from icd_kernels.problem import CLASS, MEAN, SAMPLE, SPATIAL, GramOptions

LANGUAGE_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


def ceil_div(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)


def firsts(scales: Sequence[int]) -> tuple[int, ...]:
    """First cell of each scale."""
    return tuple(accumulate((scale * scale for scale in scales[:-1]), initial=0))


def pool_dtype(features: torch.dtype, dtype: torch.dtype) -> Any:
    """The dtype in which features are pooled: their own, unless the math is wider or Triton's interpreter runs it,
    whose products of bfloat16 multiply bit patterns."""
    is_exact = dtype == torch.float32 and not interprets()
    return LANGUAGE_DTYPES[features if is_exact else dtype]


def parts(values: Any) -> int:
    """How many numbers a pixel's or a cell's value is summed as on the tensor cores: three bfloat16 for a float32."""
    return 3 if values == tl.float32 and not interprets() else 1


def exact_products(dtype: torch.dtype) -> str:
    """input_precision that keeps every digit of `dtype`: float32 as three products of TF32, where there is TF32."""
    return "tf32x3" if dtype == torch.float32 and torch.version.hip is None else "ieee"


def precision(dtype: torch.dtype, setting: str) -> str:
    """input_precision of the products with weights; float32 follows the setting of PyTorch's own products
    (`torch.get_float32_matmul_precision()`)."""
    is_fast = setting != "highest"
    return "tf32" if is_fast and exact_products(dtype) == "tf32x3" else exact_products(dtype)


def gram_precision(products: str) -> str:
    """input_precision of Gram matrices: small, and exponents of what follows, so that float32 stays float32."""
    return "tf32" if products == "tf32" else "ieee"


class Layout(NamedTuple):
    """Tensor metadata that a plan depends on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


Layouts = tuple[Any, ...]
"""Of several tensors, each a `Layout` or a plain tuple of its fields, which takes a third of the time to make and to
look up; None for a tensor that is left out."""


def layout(tensor: Tensor | None) -> Layout | None:
    """The tensor's layout; only its place in memory is left out."""
    return None if tensor is None else Layout(tensor.shape, tensor.stride(), tensor.dtype)


def layouts(tensors: Sequence[Tensor | None]) -> Layouts:
    """The layouts of several tensors."""
    return tuple([None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors])


def math_dtype(tensors: Layouts) -> torch.dtype:
    """That of the math for tensors of these layouts, as :func:`icd_kernels.checks.compute_dtype`."""
    return (
        torch.float64 if any(tensor is not None and tensor[2] == torch.float64 for tensor in tensors) else torch.float32
    )


def class_sum_of(gram: int, classes: int) -> str:
    """How class form is summed; other forms do not ask the environment."""
    return configs.class_sum(classes) if gram == CLASS else "exact"


def pitch_of(classes: int) -> int:
    """From one row of K numbers of workspace to the next."""
    return ceil_div(classes, PITCH) * PITCH


class NetworkPlan(NamedTuple):
    """One network's part of a launch: all of the kernel's arguments but tensors, and its workspace's sizes."""

    constants: NetworkConstants
    numbers: tuple[int, ...]
    """Those of `Network`, in its order."""
    cells_pitch: int
    """From one image's projected logits to the next."""
    division: tuple[int, int]
    """Images of a group, and parts of the channels (project.divided)."""
    pool_tasks: int
    project_tasks: int
    pooled_size: int
    logits_size: int

    def arguments(self, *tensors: Any) -> Network:
        """The kernel's view of the network: features, weight, bias, pooled features and logits."""
        return Network(*tensors, *self.numbers)

    def logits(self, logits: Tensor, arrivals: Tensor) -> Logits:
        """Its projected logits, as the Gram stage reads them."""
        pitch = self.cells_pitch // self.constants.CELLS
        return Logits(logits, arrivals, pitch, self.cells_pitch, pitch, 1)


def plan_network(
    network: Layouts,
    dtype: torch.dtype,
    products: str,
    scales: tuple[int, ...],
    finest: int,
    device: torch.device,
    pitch: int = 0,
) -> NetworkPlan:
    """How one network, given by its features, weight and bias, is pooled and projected.

    `products`: see :func:`precision`. `pitch`: of its logits, if not that of workspace.
    """
    features, weight = Layout(*network[0]), Layout(*network[1])
    bias = None if network[2] is None else Layout(*network[2])
    constants = _network_constants(features, weight, dtype, products, base_scales(scales, finest), device)
    batch, channels = features.shape[:2]
    classes, cells = weight.shape[0], constants.CELLS
    group_images = group_rows(batch, cells, constants.ROW_BLOCK)
    group_tiles = ceil_div(group_images * cells, constants.ROW_BLOCK) * ceil_div(classes, constants.CLASS_BLOCK)
    groups = ceil_div(batch, group_images)
    splits = configs.splits(groups * group_tiles, channels, constants.DEPTH_BLOCK)
    pool_tasks = batch * ceil_div(cells, constants.CELL_BLOCK) * ceil_div(channels, constants.CHANNEL_BLOCK)
    pitch = pitch or pitch_of(classes)
    bias_stride = 0 if bias is None else bias.stride[0]
    return NetworkPlan(
        constants=constants,
        numbers=(channels, classes, pitch, *features.stride, *weight.stride, bias_stride),
        cells_pitch=cells * pitch,
        division=(group_images, splits),
        pool_tasks=pool_tasks,
        project_tasks=groups * group_tiles * splits,
        pooled_size=batch * cells * channels,
        logits_size=splits * batch * cells * pitch,
    )


def group_rows(batch: int, cells: int, row_block: int) -> int:
    """Images whose cells are rows of one matrix product.

    The fewest images that fill their tiles as well as any: 3 of 21 cells take one tile of 64 rows, where each in a
    tile of its own would leave two thirds of it empty.
    """
    most = max(1, min(batch, max(row_block // cells, configs.GROUP_IMAGES)))
    tiles = [ceil_div(images * cells, row_block) / images for images in range(1, most + 1)]
    fullest = next(images for images, share in enumerate(tiles, 1) if share <= 1.02 * min(tiles))
    return max(fullest, ceil_div(batch, GROUPS))


def _network_constants(
    features: Layout, weight: Layout, dtype: torch.dtype, products: str, base: tuple[int, ...], device: torch.device
) -> NetworkConstants:
    """What the kernel is compiled for, on the base scales."""
    channels = features.shape[1]
    pool = pool_dtype(features.dtype, dtype)
    row_block, class_block, depth_block = configs.product_blocks(dtype, products, device)
    head_bytes, tile_bytes = weight.shape[0] * channels * weight.dtype.itemsize, row_block * channels * dtype.itemsize
    return map_constants(features, dtype, pool, base)._replace(
        BAND=configs.row_band(head_bytes, tile_bytes),
        PRECISION=products,
        ROW_BLOCK=row_block,
        CLASS_BLOCK=class_block,
        DEPTH_BLOCK=depth_block,
    )


def map_constants(features: Layout, dtype: torch.dtype, pool: Any, scales: tuple[int, ...]) -> NetworkConstants:
    """For a launch that pools a map over every cell of `scales` by itself, or scatters; no product is in it."""
    _, channels, height, width = features.shape
    cells = cell_count(scales)
    return NetworkConstants(
        ACC=LANGUAGE_DTYPES[dtype],
        POOL=pool,
        SCALES=scales,
        FIRSTS=firsts(scales),
        CELLS=cells,
        HEIGHT=height,
        WIDTH=width,
        ALIGN=math.gcd(features.stride[1], 16),
        FLAT=height == 1 or features.stride[2] == width * features.stride[3],
        ROWS_APART=False,
        BAND=1,
        PRECISION="ieee",
        PARTS=parts(pool),
        CELL_BLOCK=configs.cell_block(cells),
        PIXEL_BLOCK=configs.pixel_block(height * width, dtype),
        CHANNEL_BLOCK=configs.channel_block(channels, cells, pool.primitive_bitwidth),
        ROW_BLOCK=1,
        CLASS_BLOCK=1,
        DEPTH_BLOCK=1,
    )


class GramPlan(NamedTuple):
    """The Gram stage of a launch."""

    form: Form
    gradient: bool
    """Whether dl/dz is wanted."""
    tasks: int
    units: int
    rows_size: int
    nodes_size: int
    """float64 numbers of workspace."""


def plan_gram(
    batch: int,
    classes: int,
    dtype: torch.dtype,
    options: GramOptions,
    gradient: bool,
    finest: int,
    products: str,
    student_finest: int,
    teacher_finest: int,
    class_sum: str = "exact",
    double_cost: int = 8,
) -> GramPlan:
    """How losses and dl/dz follow from local logits; `finest` is the grid dl/dz is folded onto, 0 for none."""
    scales, gram = options.scales, options.gram
    cells = cell_count(scales)
    units = len(scales) if gram == SPATIAL else cells
    class_sum = class_sum if gram == CLASS else "exact"
    class_rows, class_columns = configs.class_blocks(classes, dtype)
    form = Form(
        ACC=LANGUAGE_DTYPES[dtype],
        SCALES=scales,
        FIRSTS=firsts(scales),
        WEIGHTS=options.cell_weights,
        CELLS=cells,
        GRAM=gram,
        CENTRE=options.normalize[0],
        SPREAD=options.normalize[1],
        REDUCTION=options.reduction,
        FINEST=finest,
        PRECISION=products,
        MEANS=exact_products(dtype),
        STUDENT_FINEST=student_finest,
        TEACHER_FINEST=teacher_finest,
        UNITS=units,
        UNIT_BLOCK=configs.power_of_two(units, 1, 1 << 30),
        VECTOR_BLOCK=configs.vector_block(classes),
        CLASS_SUM=class_sum,
        NODE_SPACE=configs.node_space(classes),
        NODE_SIZE=0 if class_sum == "exact" else 17 * configs.node_space(classes),
        DOUBLE_COST=double_cost,
        CLASS_ROWS=class_rows,
        CLASS_COLUMNS=class_columns,
        PTX=dtype == torch.float32 and torch.version.hip is None and not interprets(),
        POINT_BLOCK=configs.POINT_BLOCK,
        RESIDENT=configs.resident(classes, scales, dtype) if gram == SPATIAL else 0,
        POINT_DEPTH=configs.POINT_DEPTH,
        POINT_VECTOR=configs.point_vector(classes),
    )
    tasks = batch * units
    if gram == SAMPLE:
        tasks += cells * ceil_div(batch, configs.POINT_BLOCK) * (2 if gradient else 1)
    rows_size = batch * cells * (ROW_VALUES.value * pitch_of(classes) if gram == CLASS else 4) if gradient else 0
    return GramPlan(form, gradient, tasks, units, rows_size, batch * cells * form.NODE_SIZE)


def loss_of_nothing(options: GramOptions) -> float:
    """The reduced loss of no images."""
    return math.nan if options.reduction == MEAN else 0.0


def spaces(*sizes: int) -> tuple[int, ...]:
    """Sizes of the pieces of one allocation of workspace, each a multiple of 16 elements."""
    return tuple(ceil_div(size, 16) * 16 for size in sizes)
