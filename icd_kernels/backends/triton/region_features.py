"""region_features: mean features of every cell in one launch, and the gradient by the map in another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from icd_kernels.backends.triton.plan import plan_region_features, plan_region_features_backward
from icd_kernels.backends.triton.plan_parts import Layout
from icd_kernels.backends.triton.structs import Backward, Network
from icd_kernels.checks import compute_dtype
from icd_kernels.geometry import cell_count

UNUSED = (0,) * 6
"""Strides of what the launch does not have."""


def region_features(features: Tensor, scales: Sequence[int]) -> Tensor:
    """The operator region_features (icd_kernels/operators.py)."""
    dtype = compute_dtype(features)
    laid = Layout(features.shape, features.stride(), features.dtype)
    launch = plan_region_features(laid, dtype, tuple(scales))
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
    launch = plan_region_features_backward(laid, grad.dtype, tuple(scales))

    def arguments(given: Tensor) -> tuple[Any, ...]:
        tensors = (None, None, None, None, None, given, features, None, None, None)
        numbers = (*UNUSED, *laid.stride, 0, size[1], 0)
        return (Backward(*tensors, *numbers),)

    launch(grad.device, arguments, (grad.contiguous(),), (features,))
    return features
