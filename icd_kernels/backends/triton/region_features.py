"""region_features: mean features of every cell in one launch, and the gradient by the map in another."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import (
    LANGUAGE_DTYPES,
    Layout,
    ceil_div,
    map_constants,
    pool_dtype,
)
from icd_kernels.backends.triton.pooling import pool_task
from icd_kernels.backends.triton.scattering import scatter_channels
from icd_kernels.backends.triton.structs import Backward, Network
from icd_kernels.checks import compute_dtype
from icd_kernels.geometry import cell_count

UNUSED = (0,) * 6
"""Strides of what the launch does not have."""


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
    scatter_channels(image, o_channels, (o_channels < job.channels)[None, :], job, True, CONSTANTS)


@lru_cache(maxsize=1024)
def _plan_forward(features: Layout, dtype: torch.dtype, scales: tuple[int, ...]) -> Launch:
    constants = map_constants(features, dtype, pool_dtype(features.dtype, dtype), scales)
    batch, channels = features.shape[:2]
    blocks = ceil_div(constants.CELLS, constants.CELL_BLOCK) * ceil_div(channels, constants.CHANNEL_BLOCK)
    return Launch(region_features_kernel, batch * blocks, NETWORK=constants)


@lru_cache(maxsize=1024)
def _plan_backward(features: Layout, dtype: torch.dtype, scales: tuple[int, ...]) -> Launch:
    constants = map_constants(features, dtype, LANGUAGE_DTYPES[dtype], scales)
    batch, channels = features.shape[:2]
    return Launch(
        region_features_backward_kernel, batch * ceil_div(channels, constants.CHANNEL_BLOCK), CONSTANTS=constants
    )


def region_features(features: Tensor, scales: Sequence[int]) -> Tensor:
    """The operator region_features (icd_kernels/operators.py)."""
    dtype = compute_dtype(features)
    laid = Layout(features.shape, features.stride(), features.dtype)
    launch = _plan_forward(laid, dtype, tuple(scales))
    pooled = features.new_empty((features.shape[0], cell_count(scales), features.shape[1]), dtype=dtype)
    if features.shape[0] == 0:
        return pooled

    def arguments(given: Tensor) -> tuple[Any, ...]:
        tensors = (given, None, None, pooled, None)
        numbers = (features.shape[1], 0, 0, *laid.stride, *UNUSED[:3])
        return (Network(*tensors, *numbers),)

    launch(features.device, arguments, (features,), (pooled,))
    return pooled


def region_features_backward(
    grad: Tensor, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, scales: Sequence[int]
) -> Tensor:
    """The operator region_features_backward (icd_kernels/operators.py)."""
    features = torch.empty_strided(size, stride, dtype=dtype, device=grad.device)
    if features.numel() == 0:
        return features
    laid = Layout(features.shape, features.stride(), features.dtype)
    launch = _plan_backward(laid, grad.dtype, tuple(scales))

    def arguments(given: Tensor) -> tuple[Any, ...]:
        tensors = (None, None, None, None, None, given, features, None, None, None)
        numbers = (*UNUSED, *laid.stride, 0, size[1], 0)
        return (Backward(*tensors, *numbers),)

    launch(grad.device, arguments, (grad.contiguous(),), (features,))
    return features
