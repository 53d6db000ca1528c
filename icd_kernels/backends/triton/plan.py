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
from icd_kernels.backends.triton.operators import interprets
from icd_kernels.backends.triton.structs import GROUPS, Form, Logits, LogitsConstants, Network, NetworkConstants
from icd_kernels.geometry import base_scales, cell_count, is_folded

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


def precision(dtype: torch.dtype) -> str:
    """input_precision of the products with weights: float32 follows `torch.get_float32_matmul_precision()`."""
    is_fast = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if is_fast and exact_products(dtype) == "tf32x3" else exact_products(dtype)


def gram_precision(products: str) -> str:
    """input_precision of Gram matrices: small, and exponents of what follows, so that float32 stays float32."""
    return "tf32" if products == "tf32" else "ieee"


class Layout(NamedTuple):
    """What a launch is planned from, of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def layout(tensor: Tensor | None) -> Layout | None:
    """The tensor's layout; only its place in memory is left out."""
    return None if tensor is None else Layout(tensor.shape, tensor.stride(), tensor.dtype)


class NetworkPlan(NamedTuple):
    """One network's part of a launch: all of the kernel's arguments but tensors, and its workspace's sizes."""

    constants: NetworkConstants
    numbers: tuple[int, ...]
    """Those of `Network`, in its order."""
    logits_numbers: tuple[int, ...]
    """Those of `Logits`, as the Gram stage reads the projected ones."""
    finest: int
    pool_tasks: int
    project_tasks: int
    pooled_size: int
    logits_size: int

    def arguments(self, features: Tensor, weight: Tensor, bias: Tensor | None, pooled: Tensor, logits: Tensor) -> Any:
        """The kernel's view of the network."""
        return Network(features, weight, bias, pooled, logits, *self.numbers)

    def logits(self, logits: Tensor, arrivals: Tensor) -> Logits:
        """Its projected logits, as the Gram stage reads them."""
        return Logits(logits, arrivals, *self.logits_numbers)

    @property
    def logits_constants(self) -> LogitsConstants:
        """How every cell's logits follow from the projected ones."""
        return LogitsConstants(self.constants.SPLITS, self.finest, self.constants.GROUP_IMAGES)


def plan_network(
    features: Layout,
    weight: Layout,
    bias: Layout | None,
    dtype: torch.dtype,
    products: str,
    scales: tuple[int, ...],
    pyramid: str,
) -> NetworkPlan:
    """How one network is pooled and projected; `products`: see :func:`precision`."""
    constants, finest = _network_constants(features, weight, dtype, products, scales, pyramid)
    batch, channels = features.shape[:2]
    classes, cells, splits = weight.shape[0], constants.CELLS, constants.SPLITS
    group_products = constants.GROUP_TILES * ceil_div(classes, constants.CLASS_BLOCK) * splits
    pool_tasks = batch * ceil_div(cells, constants.CELL_BLOCK) * ceil_div(channels, constants.CHANNEL_BLOCK)
    project_tasks = ceil_div(batch, constants.GROUP_IMAGES) * group_products
    bias_stride = 0 if bias is None else bias.stride[0]
    return NetworkPlan(
        constants=constants,
        numbers=(channels, *features.stride, *weight.stride, bias_stride, pool_tasks, project_tasks),
        logits_numbers=(batch * cells * classes, cells * classes, classes, 1, group_products),
        finest=finest,
        pool_tasks=pool_tasks,
        project_tasks=project_tasks,
        pooled_size=batch * cells * channels,
        logits_size=splits * batch * cells * classes,
    )


def group_rows(batch: int, cells: int, row_block: int) -> tuple[int, int]:
    """Images whose cells are rows of one matrix product, and the row tiles of such a group.

    The fewest images that fill their tiles as well as any: 3 of 21 cells take two tiles of 32 rows, where each in a
    tile of its own would leave a third of it empty.
    """
    most = max(1, min(batch, max(row_block // cells, configs.GROUP_IMAGES)))
    tiles = [ceil_div(images * cells, row_block) / images for images in range(1, most + 1)]
    fullest = next(images for images, share in enumerate(tiles, 1) if share <= 1.02 * min(tiles))
    group_images = max(fullest, ceil_div(batch, GROUPS))
    return group_images, ceil_div(group_images * cells, row_block)


def _network_constants(
    features: Layout, weight: Layout, dtype: torch.dtype, products: str, scales: tuple[int, ...], pyramid: str
) -> tuple[NetworkConstants, int]:
    """What the kernel is compiled for, and the side of the only grid that is projected, 0 where all cells are."""
    batch, channels, height, width = features.shape
    base = base_scales(scales, pyramid, height, width)
    cells = cell_count(base)
    pool = pool_dtype(features.dtype, dtype)
    row_block, class_block, depth_block = configs.product_blocks(dtype, products)
    group_images, group_tiles = group_rows(batch, cells, row_block)
    tiles = ceil_div(batch, group_images) * group_tiles * ceil_div(weight.shape[0], class_block)
    head_bytes, tile_bytes = weight.shape[0] * channels * weight.dtype.itemsize, row_block * channels * dtype.itemsize
    constants = NetworkConstants(
        ACC=LANGUAGE_DTYPES[dtype],
        POOL=pool,
        SCALES=base,
        FIRSTS=firsts(base),
        CELLS=cells,
        HEIGHT=height,
        WIDTH=width,
        ALIGN=math.gcd(features.stride[1], 16),
        FLAT=height == 1 or features.stride[2] == width * features.stride[3],
        ROWS_APART=False,
        GROUP_IMAGES=group_images,
        GROUP_TILES=group_tiles,
        BAND=configs.row_band(head_bytes, tile_bytes),
        SPLITS=configs.splits(tiles, channels, depth_block),
        PRECISION=products,
        PARTS=parts(pool),
        CELL_BLOCK=configs.cell_block(cells),
        PIXEL_BLOCK=configs.pixel_block(height * width, dtype),
        CHANNEL_BLOCK=configs.channel_block(channels, cells, pool.primitive_bitwidth),
        ROW_BLOCK=row_block,
        CLASS_BLOCK=class_block,
        DEPTH_BLOCK=depth_block,
    )
    return constants, max(scales) if is_folded(scales, pyramid, height, width) else 0


class GramPlan(NamedTuple):
    """The Gram stage of a launch."""

    form: Form
    tasks: int
    units: int
    rows_size: int
    nodes_size: int
    """float64 numbers of workspace."""
    group_images: int
    group_cells: int


def plan_gram(
    batch: int,
    classes: int,
    dtype: torch.dtype,
    scales: tuple[int, ...],
    scale_weights: tuple[float, ...],
    gram: str,
    normalize: str,
    reduction: str,
    gradient: bool,
    finest: int,
    products: str,
    student: LogitsConstants,
    teacher: LogitsConstants,
    class_sum: str = "exact",
    double_cost: int = 8,
) -> GramPlan:
    """How losses and dl/dz follow from local logits; `finest` is the grid dl/dz is folded onto, 0 for none."""
    cells = cell_count(scales)
    units = len(scales) if gram == "spatial" else cells
    matrices = [1 if gram == "spatial" else scale * scale for scale in scales]
    blocks = ceil_div(batch, configs.PAIR_BLOCK)
    class_sum = class_sum if gram == "class" else "exact"
    class_rows, class_columns = configs.class_blocks(classes, dtype)
    form = Form(
        ACC=LANGUAGE_DTYPES[dtype],
        SCALES=tuple(scales),
        FIRSTS=firsts(scales),
        WEIGHTS=tuple(weight / count for weight, count in zip(scale_weights, matrices, strict=True)),
        CELLS=cells,
        GRAM=gram,
        NORMALIZE=normalize,
        REDUCTION=reduction,
        GRADIENT=gradient,
        FINEST=finest,
        PRECISION=products,
        STUDENT=student,
        TEACHER=teacher,
        UNITS=units,
        UNIT_BLOCK=configs.power_of_two(units, 1, 1 << 30),
        VECTOR_BLOCK=configs.vector_block(classes),
        CLASS_SUM=class_sum,
        NODE_SPACE=configs.node_space(classes),
        NODE_SIZE=0 if class_sum == "exact" else 17 * configs.node_space(classes),
        DOUBLE_COST=double_cost,
        CLASS_ROWS=class_rows,
        CLASS_COLUMNS=class_columns,
        PAIR_BLOCK=configs.PAIR_BLOCK,
        RESIDENT=configs.resident(classes, scales, dtype) if gram == "spatial" else 0,
        PAIR_DEPTH=configs.PAIR_DEPTH,
        PAIR_VECTOR=configs.pair_vector(classes),
    )
    if gram == "sample":
        tasks = batch * cells + cells * blocks * (2 if gradient else 1)
        group_images = configs.PAIR_BLOCK * ceil_div(blocks, GROUPS)
    else:
        tasks = batch * units
        group_images = ceil_div(batch, GROUPS)
    rows_size = batch * cells * (2 * classes if gram == "class" else 4) if gradient else 0
    nodes_size = batch * cells * form.NODE_SIZE
    return GramPlan(form, tasks, units, rows_size, nodes_size, group_images, ceil_div(cells, GROUPS))


def spaces(*sizes: int) -> tuple[int, ...]:
    """Sizes of the pieces of one allocation of workspace, each a multiple of 16 elements."""
    return tuple(ceil_div(size, 16) * 16 for size in sizes)


def workspace(like: Tensor, dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """One allocation in pieces of those sizes (:func:`spaces`)."""
    return like.new_empty(sum(sizes), dtype=dtype).split_with_sizes(sizes)
