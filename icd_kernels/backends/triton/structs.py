"""What kernels are given, in groups: pointers, sizes and strides at run time, and the constants they are compiled for.

Triton passes a NamedTuple of tensors and integers as its fields, and one of constants as a `tl.constexpr`, so that a
kernel has a dozen arguments rather than seventy. Names in capitals are constants.
"""

from __future__ import annotations

from typing import Any, NamedTuple

GROUPS = 256
"""Counters of one kind: images (or cells) are grouped so that no kind of arrival ever needs more."""

PITCH = 16
"""Rows of workspace start at multiples of this many numbers, so that they are moved 16 bytes at a time for every K."""


class Counters(NamedTuple):
    """Views of one counter slot (:mod:`.counters`), int32: `p_all` is the whole slot, the others lie within it."""

    p_all: Any
    """The task ticket, then the count of finished tasks, then the rest of this table."""
    p_student_pooled: Any
    p_teacher_pooled: Any
    p_student_logits: Any
    p_teacher_logits: Any
    p_cells: Any
    p_rows: Any
    p_images: Any


class Network(NamedTuple):
    """One network's feature map (B, C, H, W), head, and where its pooled features and partial logits go."""

    p_features: Any
    p_weight: Any
    p_bias: Any
    p_pooled: Any
    """(B, cells, C)"""
    p_logits: Any
    """(splits, B, cells, pitch)"""
    channels: Any
    classes: Any
    pitch: Any
    """From one row of logits to the next: K, in workspace rounded up to :data:`PITCH`, the rest zero."""
    stride_image: Any
    stride_channel: Any
    stride_row: Any
    stride_column: Any
    stride_class: Any
    stride_depth: Any
    """Strides of the weight: class, then channel."""
    stride_bias: Any


class NetworkConstants(NamedTuple):
    """What the kernels are compiled for, for one network."""

    ACC: Any
    """The dtype of the math."""
    POOL: Any
    """The dtype in which features are multiplied by 0 and 1: their own, which is exact."""
    SCALES: Any
    """The base scales: those pooled and projected (icd_kernels/geometry.py)."""
    FIRSTS: Any
    """First cell of each base scale."""
    CELLS: Any
    """Base cells altogether."""
    HEIGHT: Any
    WIDTH: Any
    ALIGN: Any
    """What the map's channel stride is a multiple of, up to 16: known, it lets pixels be read many at a time."""
    FLAT: Any
    """Whether pixel p lies at p * stride_column: true of NCHW, channels-last and token grids."""
    ROWS_APART: Any
    """Backward: whether dl/dz's image stride is not cells times its cell stride."""
    BAND: Any
    """Row tiles for which a block of classes is read together (project.tile_place)."""
    PRECISION: Any
    """input_precision of the products."""
    PARTS: Any
    """3 where values are float32 to be summed on tensor cores as three bfloat16, 1 where as they are."""
    CELL_BLOCK: Any
    PIXEL_BLOCK: Any
    CHANNEL_BLOCK: Any
    ROW_BLOCK: Any
    CLASS_BLOCK: Any
    DEPTH_BLOCK: Any


class Logits(NamedTuple):
    """Local logits to read: projected in this launch, or a caller's (B, K, N)."""

    p_logits: Any
    p_arrivals: Any
    """Counters of the projection to wait for, one per group of images; None where the logits are already there."""
    depth: Any
    """Numbers of a row that can be read: K, or its pitch where the rest is zero."""
    stride_image: Any
    stride_cell: Any
    stride_class: Any


class Work(NamedTuple):
    """Workspace and outputs of the Gram stage. Those of the gradient are not touched where none is wanted."""

    p_student: Any
    """(B, N, pitch) normalised logits, zero beyond K; the teacher's below."""
    p_teacher: Any
    p_student_raw: Any
    """(B, N, K) logits before normalisation, where they are an output; None otherwise."""
    p_teacher_raw: Any
    p_divisor: Any
    """(B, N): what the student's logits were divided by."""
    p_rows: Any
    """What columns need of rows: (B, N, ROW_VALUES, pitch) for class (exact_class), else normalisers (B, N, 4)."""
    p_nodes: Any
    """(B, N, NODE_SIZE) float64: sums at nodes and their coefficients (linear_class); None where not needed."""
    p_unit_loss: Any
    """(B, units): the weighted loss of every Gram matrix (of the image's row of it, for sample)."""
    p_image_loss: Any
    p_loss: Any
    p_gradient: Any
    """(B, N, pitch): dl/dz, zero beyond K."""
    p_saved: Any
    """(B, base cells, pitch): the same folded onto the base cells; unused where all cells are base cells."""
    p_upstream: Any
    """(B,): the images' upstream gradients, where dl/dz must mix them (sample, reduction "none"); None otherwise."""
    stride_upstream: Any
    classes: Any
    pitch: Any


class Form(NamedTuple):
    """The options of the loss and the blocks of its Gram stage: what that stage is compiled for."""

    ACC: Any
    SCALES: Any
    FIRSTS: Any
    WEIGHTS: Any
    """Of one Gram matrix of each scale (problem.GramOptions.cell_weights)."""
    CELLS: Any
    GRAM: Any
    CENTRE: Any
    """1 where normalisation takes the mean away, else 0."""
    SPREAD: Any
    """Times the norm it is what a row is divided by; 0 where a row is not divided (options.normalization)."""
    REDUCTION: Any
    FINEST: Any
    """Side of the grid dl/dz is folded onto; 0 where it is not folded."""
    PRECISION: Any
    """input_precision of Gram matrices."""
    MEANS: Any
    """input_precision of means over the finest grid."""
    STUDENT_FINEST: Any
    TEACHER_FINEST: Any
    """Side of the only grid whose logits are stored, coarser cells being means over it; 0 where every cell's are."""
    UNITS: Any
    """Losses per image in `p_unit_loss`."""
    UNIT_BLOCK: Any
    VECTOR_BLOCK: Any
    """Classes that one row is read by."""
    CLASS_SUM: Any
    """"auto", or "exact" or "linear" where only that is wanted."""
    NODE_SPACE: Any
    """The most Chebyshev nodes of one sum."""
    NODE_SIZE: Any
    """Workspace of a cell in `p_nodes`: 17 rows of NODE_SPACE numbers, or 0."""
    DOUBLE_COST: Any
    """What a float64 exponential costs, in float32 ones."""
    CLASS_ROWS: Any
    """Rows of a class Gram at a time, a few for each thread."""
    CLASS_COLUMNS: Any
    """Columns of a tile of exponentials, in sums at nodes."""
    PTX: Any
    """Whether the inner loops are helped by PTX (exponential): float32 on NVIDIA's GPUs."""
    POINT_BLOCK: Any
    RESIDENT: Any
    """Classes of a Gram between vectors that stays in registers; 0 where it does not (resident_gram)."""
    POINT_DEPTH: Any
    """Classes of one step of a product."""
    POINT_VECTOR: Any
    """Classes of one step of anything else."""


class Backward(NamedTuple):
    """dl/dz over the base cells, what it is multiplied with, and the gradients to write (None where not wanted)."""

    p_gradient: Any
    p_upstream: Any
    """(B,): the images' upstream gradients; None where one number, at `p_scale`, serves them all."""
    p_scale: Any
    p_pooled: Any
    p_weight: Any
    p_cells: Any
    """(B, cells, C) workspace: the gradient by the pooled features over the cell's size."""
    p_features: Any
    p_partial: Any
    """Workspace (splits, K, C) if the weight's is wanted, then (splits, K): gradients of parts of the images."""
    p_weight_gradient: Any
    p_bias_gradient: Any
    stride_image: Any
    """Strides of dl/dz."""
    stride_cell: Any
    stride_class: Any
    stride_upstream: Any
    weight_stride_class: Any
    weight_stride_depth: Any
    feature_stride_image: Any
    feature_stride_channel: Any
    feature_stride_row: Any
    feature_stride_column: Any
    classes: Any
    channels: Any
    depth: Any
    """Numbers of a row of dl/dz that can be read: K, or its pitch where the rest is zero."""
