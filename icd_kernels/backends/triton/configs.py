"""Block sizes by shape: every configuration the kernels are compiled in without being asked to tune.

All tiles are powers of two, as Triton requires, and programs have four warps. They are sized so that on sm_90 float32
spills no register (tests/ahead_of_time/table.py prints what every binary takes). Where each figure comes from: "GPU" is
timings and traces on one H100 (benchmarks/results/h100.json), made with earlier kernels; "model" is an estimate from
the compiled code (instructions, shared-memory conflicts, latencies of an H100), not measured on a GPU yet.

- Pooling reads [PIXEL_BLOCK, CHANNEL_BLOCK] of a map at a time, 16 KB, two more tiles on their way meanwhile (GPU). In
  a launch of its own, with more programs at once, the forward was 3 to 5 % faster: not worth the second launch (GPU).
- Products go through tensor cores, float32 as three TF32 products (GPU: 228 us for a forward of CUB
  ResNet50→ShuffleNetV1 that took 401 with fused multiply-adds); float64 does not. Tiles of 64 rows, which become
  warpgroup products on sm_90: 384 instructions where two tiles of 32 rows take 826 (model). Half as deep on sm_80,
  where deeper ones spilled 26 to 184 registers (binaries).
- Where tiles are too few to occupy the chip, the depth is split so that about SPREAD programs work on it, in at most
  MAX_SPLITS parts (model).
- class: a thread holds two rows and walks over the columns: 21 instructions for a pair of both networks where sums over
  tiles took 121 (model); from LINEAR_FROM classes on, the sums linear in K where they are estimated to cost less
  (model).
- spatial: a scale's logits are one tile where there are at most POINT_BLOCK cells and RESIDENT_CLASSES classes; its
  products of float32 by fused multiply-adds, 5.1 us where three TF32 products take 6.7 and spill (model).
- spatial otherwise, sample: Gram tiles [POINT_BLOCK, POINT_BLOCK] over POINT_DEPTH classes at a time.
- 168 registers in the forward, three programs on a multiprocessor (GPU); as many as it likes in the backward (model).
- Stages: 3 (GPU). With eight warps every forward was slower (GPU).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import triton

from icd_kernels.problem import CLASS, SAMPLE, SPATIAL

LAUNCHES = 1
"""Of the forward: one; or three, for experiments on NVIDIA's GPUs (chained.py)."""
WARPS = 4
STAGES = 3
REGISTERS = 168
"""Per thread in the forward: three programs on a multiprocessor of 65,536."""
MOST_REGISTERS = 255
PRODUCT_TILE = (64, 64, 32)
"""Rows, columns and depth of a tile of a product of float32 or halves, forward."""
SPREAD = 264
"""Programs wanted for a product: two for each of an H100's 132 multiprocessors."""
WEIGHT_SPREAD = 396
"""Programs wanted for a weight's gradient, which waits for nothing and whose parts are short: three for each."""
MAX_SPLITS = 4

GROUP_IMAGES = 8
"""Largest projection group when fewer images already fill a tile; small groups shorten waits."""
CACHED_BYTES = 16 << 20
"""What is taken to stay in the second-level cache beside all else; an H100 has 50 MB."""

LINEAR_FROM = 256
"""Fewer classes than this are always summed exactly: there is little to gain, and it compiles ten times as fast."""
CLASS_SUM_VARIABLE = "ICD_KERNELS_CLASS_SUM"

AUTOTUNE_VARIABLE = "ICD_KERNELS_AUTOTUNE"
AUTOTUNE_CHOICES = ((4, 3), (4, 2), (4, 4), (8, 2), (8, 3))
"""(warps, stages) that are timed where ICD_KERNELS_AUTOTUNE=1; the first is the default."""


def autotunes() -> bool:
    """Whether the user asked for launches to be tuned by timing them."""
    return os.environ.get(AUTOTUNE_VARIABLE) == "1"


def registers(gram: int, classes: int, dtype: torch.dtype) -> int:
    """Registers per thread of the whole loss.

    Sample, float64 and class sums linear in K would spill: they have 255, and are told so, since the assembler by
    itself takes fewer and spills.
    """
    is_linear = gram == CLASS and class_sum(classes) != "exact"
    return MOST_REGISTERS if is_linear or gram == SAMPLE or dtype == torch.float64 else REGISTERS


def gram_registers(gram: int, classes: int, dtype: torch.dtype) -> int | None:
    """Registers per thread of the Gram stage in a launch of its own."""
    return None if gram == SPATIAL else registers(gram, classes, dtype)


def backward_registers(dtype: torch.dtype) -> int | None:
    """Registers per thread of the backward: as many as the assembler likes, which for float64 are too few."""
    return MOST_REGISTERS if dtype == torch.float64 else None


def power_of_two(count: int, low: int, high: int) -> int:
    """The smallest power of two that holds `count`, within [low, high]."""
    return min(max(1 << max(count - 1, 0).bit_length(), low), high)


def cell_block(cells: int) -> int:
    """Cells pooled, or scattered, at a time."""
    return power_of_two(cells, 16, 64)


def pixel_block(pixels: int, dtype: torch.dtype) -> int:
    """Pixels pooled, or scattered to, at a time."""
    return power_of_two(pixels, 16, 32 if dtype == torch.float64 else 64)


def channel_block(channels: int, cells: int, bits: int) -> int:
    """Channels pooled, or scattered to, at a time, of numbers of that many bits."""
    return power_of_two(channels, 16, 16 if bits == 64 else 128 if bits == 16 and cells <= 16 else 64)


def capability(device: torch.device) -> tuple[int, int]:
    """Of an NVIDIA GPU; an H100's for any other device."""
    if device.type != "cuda" or torch.version.hip is not None:
        return 9, 0
    return torch.cuda.get_device_capability(device)


def product_blocks(dtype: torch.dtype, precision: str, device: torch.device) -> tuple[int, int, int]:
    """Rows, columns and depth of a tile of a matrix product."""
    if dtype == torch.float64:
        return 32, 32, 16
    if precision == "ieee":
        return 32, 64, 16
    rows, columns, depth = PRODUCT_TILE
    # Before warpgroup products a warp holds both operands in registers, three parts of each: deeper tiles spill.
    return (rows, columns, 16) if precision == "tf32x3" and capability(device) < (9, 0) else (rows, columns, depth)


def backward_blocks(dtype: torch.dtype, precision: str, device: torch.device) -> tuple[int, int, int]:
    """The same for the backward, whose operands lie across the depth: warpgroup products of TF32 would have to turn
    them over in shared memory, eight lanes to a bank."""
    is_split = dtype == torch.float32 and precision == "tf32x3"
    return (32, 64, 32) if is_split else product_blocks(dtype, precision, device)


def splits(tiles: int, depth: int, depth_block: int, programs: int | None = None) -> int:
    """Parts of a product's depth, a power of two: enough to spread few tiles over `programs` (default: SPREAD), none
    shorter than 4 steps."""
    most, parts = programs or SPREAD, 1
    while tiles > 0 and parts < MAX_SPLITS and tiles * parts * 2 <= most and depth >= parts * 2 * 4 * depth_block:
        parts *= 2
    return parts


def row_band(head_bytes: int, tile_bytes: int) -> int:
    """Row tiles of a projection that share a pass over the head: one each, unless it is too large to stay cached."""
    return 1 if head_bytes <= CACHED_BYTES else max(1, CACHED_BYTES // tile_bytes)


def resident(classes: int, scales: Sequence[int], dtype: torch.dtype) -> int:
    """Classes of a spatial Gram matrix that is kept in registers, or 0 where it is too large for that."""
    limit = RESIDENT_CLASSES // (4 if dtype == torch.float64 else 1)
    fits = max(scales) ** 2 <= POINT_BLOCK and classes <= limit
    return power_of_two(classes, 16, limit) if fits else 0


def point_vector(classes: int) -> int:
    """Classes of POINT_BLOCK rows read at a time where they are not multiplied."""
    return power_of_two(classes, 32, 64)


def vector_block(classes: int) -> int:
    """Classes of one row read at a time."""
    return power_of_two(classes, 16, 1024)


def class_sum(classes: int) -> str:
    """How class form is summed: as ICD_KERNELS_CLASS_SUM says, else chosen in the kernel; exactly for few classes."""
    wanted = os.environ.get(CLASS_SUM_VARIABLE, "auto")
    if wanted in ("exact", "linear"):
        return wanted
    return "exact" if classes < LINEAR_FROM or not compiles_linear_sums() else "auto"


def compiles_linear_sums() -> bool:
    """Not for AMD's GPUs by Triton 3.6, whose pass TritonAMDGPUConvertToBufferOps aborts on them."""
    numbers = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return torch.version.hip is None or numbers >= (3, 7)


def node_space(classes: int) -> int:
    """The most Chebyshev nodes of one sum: beyond half as many nodes as classes nothing is gained."""
    return power_of_two(classes // 2, 64, 256)


def double_cost(device: torch.device) -> int:
    """What a float64 exponential costs, in float32 ones: it is an estimate, by the rate of float64 on the device."""
    return 8 if capability(device) in ((8, 0), (9, 0), (10, 0)) else 128


def class_blocks(classes: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows of a class Gram at a time, two for each thread, and columns of a tile of exponentials at nodes."""
    columns = power_of_two(classes, 16, 32 if dtype == torch.float64 else 64)
    return power_of_two(classes, 16, 256), columns


RESIDENT_CLASSES = 256
"""The most classes whose logits of a scale stay in registers."""
POINT_BLOCK, POINT_DEPTH = 16, 32
"""Side of a Gram tile between vectors, and the classes of one step of its products."""
