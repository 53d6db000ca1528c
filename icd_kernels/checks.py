"""Checks of the tensors: rank, sizes that must agree, dtypes and devices. The same for every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from icd_kernels.geometry import cell_count

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the math and of the loss: float64 if any tensor is, otherwise float32."""
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64
    return torch.float32


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, as FSDP2 and tensor parallelism leave parameters. Its class is slow to import."""
    return hasattr(tensor, "full_tensor")


def check_icd_inputs(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> None:
    """Both networks on their own, then that B, K and the device agree between them."""
    tensors = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
    if torch.compiler.is_compiling():  # sizes may be symbols, and what was seen must not become a guard
        _check_networks(*tensors)
        return
    seen = _metadata(tensors)
    if seen is None or seen not in _GOOD:
        _check_networks(*tensors)
        if seen is not None and len(_GOOD) < MOST_REMEMBERED:
            _GOOD.add(seen)


def _check_networks(
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> None:
    check_network(student_features, student_weight, student_bias, "student_")
    check_network(teacher_features, teacher_weight, teacher_bias, "teacher_")
    _check_agree("teacher_features", teacher_features, "student_features", student_features, 0, "batch size")
    _check_agree("teacher_weight", teacher_weight, "student_weight", student_weight, 0, "number of classes")
    _check_device("teacher_features", teacher_features, "student_features", student_features)


_GOOD: set[Any] = set()
"""Inputs of `icd_loss` that were found good: the checks read nothing but this of them."""
MOST_REMEMBERED = 4096


def _metadata(tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...] | None:
    """What the checks read of plain tensors; None where one is another kind of thing."""
    found: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        elif type(tensor) is Tensor or type(tensor) is Parameter:
            found += (tensor.shape, tensor.dtype, tensor.device, tensor.layout)
        else:
            return None
    return tuple(found)


def check_network(features: Tensor, weight: Tensor, bias: Tensor | None, prefix: str = "") -> None:
    """One network's feature map (B, C, H, W), head weight (K, C) and bias (K,) or None."""
    check_map(features, f"{prefix}features")
    _check_tensor(f"{prefix}weight", weight, "(K, C)")
    if weight.shape[0] < 2:
        raise ValueError(f"{prefix}weight must have at least 2 classes (rows), got shape {tuple(weight.shape)}")
    if weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"{prefix}weight must have one column for each of the {features.shape[1]} channels of {prefix}features, "
            f"got shape {tuple(weight.shape)}"
        )
    _check_device(f"{prefix}weight", weight, f"{prefix}features", features)
    if bias is None:
        return
    _check_tensor(f"{prefix}bias", bias, "(K,)")
    _check_agree(f"{prefix}bias", bias, f"{prefix}weight", weight, 0, "number of classes")
    _check_device(f"{prefix}bias", bias, f"{prefix}features", features)


def check_map(features: Tensor, name: str = "features") -> None:
    """A feature map (B, C, H, W) by itself."""
    _check_tensor(name, features, "(B, C, H, W)")
    if min(features.shape[1:]) < 1:
        raise ValueError(f"{name} must have at least one channel and pixel, got shape {tuple(features.shape)}")


def check_logits(student_logits: Tensor, teacher_logits: Tensor, scales: tuple[int, ...] | None) -> None:
    """Local logits (B, K, N) of both networks, N = the sum of squared scales; None: as many regions in both."""
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        _check_tensor(name, logits, "(B, K, N)")
        if logits.shape[1] < 2:
            raise ValueError(f"{name} must have at least 2 classes, got shape {tuple(logits.shape)}")
        if scales is not None and logits.shape[2] != cell_count(scales):
            expected = f"N = {cell_count(scales)} regions for scales {scales}"
            raise ValueError(f"{name} must have {expected}, got shape {tuple(logits.shape)}")
    for dim, what in enumerate(("batch size", "number of classes", "number of regions")):
        _check_agree("teacher_logits", teacher_logits, "student_logits", student_logits, dim, what)
    _check_device("teacher_logits", teacher_logits, "student_logits", student_logits)


def _check_tensor(name: str, tensor: Tensor, expected: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape {expected}, got {type(tensor).__name__}")
    if is_sharded(tensor):
        raise TypeError(
            f"{name} must be a plain torch.Tensor of shape {expected}, got a DTensor: gather it first, a head with "
            f"icd_kernels.distributed.full_head, a constant with {name}.full_tensor()"
        )
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.ndim != expected.count(",") + (not expected.endswith(",)")):
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def _check_agree(name: str, tensor: Tensor, other_name: str, other: Tensor, dim: int, what: str) -> None:
    if tensor.shape[dim] != other.shape[dim]:
        raise ValueError(
            f"{name} must have the {what} of {other_name}, {other.shape[dim]}, got shape {tuple(tensor.shape)}"
        )


def _check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
