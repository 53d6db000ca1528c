"""The operators every compiled backend implements, and their fake kernels (shapes and dtypes without data).

Each compiled backend owns an operator namespace with these eight schemas. An operator is a pure function of its
tensors; the gradient formulas that connect forward and backward are in :mod:`icd_kernels.autograd`.

Private tensors that pass from forward to backward, in the dtype of the math:

- ``saved``: dl/dz of the reduced loss (of every image's own loss for reduction "none"), over the pooled cells,
  (B, cells, K) for `icd_loss` (a backend may let its rows be longer, zero beyond K) and (B, N, K) for `gram_kl`. For
  gram "sample" with reduction "none" that gradient mixes the images' upstream gradients, so both networks' local
  logits (2, B, N, K) are kept instead.
- ``pooled``: the pooled features (B, cells, C) that the weight's gradient needs.

Each is empty, (0,), where it was not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from icd_kernels.checks import compute_dtype
from icd_kernels.geometry import base_scales, cell_count
from icd_kernels.problem import NONE, GramOptions

_GRAM = "int[] scales, float[] cell_weights, int gram, float[] normalize, float temperature, int reduction"
_LAYOUT = "SymInt[] size, SymInt[] stride, ScalarType dtype, ScalarType bias_dtype"

SCHEMAS = (
    "region_features(Tensor features, int[] scales) -> Tensor",
    "region_features_backward(Tensor grad, SymInt[] size, SymInt[] stride, ScalarType dtype, int[] scales) -> Tensor",
    "region_logits(Tensor features, Tensor weight, Tensor? bias, int[] scales, int finest, bool save_pooled)"
    " -> (Tensor logits, Tensor pooled)",
    f"region_logits_backward(Tensor grad_logits, Tensor pooled, Tensor weight, {_LAYOUT}, int[] scales, int finest,"
    " bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)",
    f"gram_kl(Tensor student_logits, Tensor teacher_logits, {_GRAM}, bool save_gradient)"
    " -> (Tensor loss, Tensor saved)",
    f"gram_kl_backward(Tensor grad_loss, Tensor saved, ScalarType dtype, {_GRAM}) -> Tensor",
    "icd_loss(Tensor student_features, Tensor student_weight, Tensor? student_bias, Tensor teacher_features,"
    f" Tensor teacher_weight, Tensor? teacher_bias, {_GRAM}, int student_finest, int teacher_finest,"
    " bool save_gradient, bool save_pooled) -> (Tensor loss, Tensor saved, Tensor pooled)",
    f"icd_loss_backward(Tensor grad_loss, Tensor saved, Tensor pooled, Tensor weight, {_LAYOUT}, {_GRAM},"
    " int finest, bool[] wanted) -> (Tensor features, Tensor weight, Tensor bias)",
)
"""The contract. Options come as numbers (:mod:`icd_kernels.problem`). `size` and `stride` describe the gradient by the
features; `wanted` says which of the gradients by (features, weight, bias) to compute: the others come back empty."""


ROW_SCHEMA = (
    "row_losses(Tensor student_logits, Tensor teacher_logits, Tensor target, float[] factors, float temperature,"
    " float complementary_weight, bool save_gradient) -> (Tensor losses, Tensor saved)"
)
"""Of backends that have the objectives' row losses too: KD, DKD and NKD of every region's logits (B, K, N), weighted,
(B, N). `factors` are those of objectives.row_method.RowFactors; `saved` is their gradient by the student's logits,
(B, K, N), or empty, (0,)."""


def register_row_fakes(namespace: str) -> None:
    """Registers the fake kernel of :data:`ROW_SCHEMA`."""
    torch.library.register_fake(f"{namespace}::row_losses", _fake_row_losses)


def register_fakes(namespace: str, pitch: int = 1) -> None:
    """Registers the fake kernels of `namespace`, whose operators follow :data:`SCHEMAS`.

    `pitch`: rows of dl/dz that are saved start at multiples of this.
    """
    pitched = {"icd_loss": partial(_fake_icd_loss, pitch), "gram_kl": partial(_fake_gram_kl, pitch)}
    for name, fake in {**_FAKES, **pitched}.items():
        torch.library.register_fake(f"{namespace}::{name}", fake)  # type: ignore[arg-type]


def _fake_region_features(features: Tensor, scales: Sequence[int]) -> Tensor:
    batch, channels = features.shape[:2]
    return features.new_empty((batch, cell_count(scales), channels), dtype=compute_dtype(features))


def _fake_region_features_backward(
    grad: Tensor, size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, scales: Sequence[int]
) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device=grad.device)


def _fake_region_logits(
    features: Tensor, weight: Tensor, bias: Tensor | None, scales: Sequence[int], finest: int, save_pooled: bool
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(features, weight, bias)
    batch = features.shape[0]
    logits = features.new_empty((batch, cell_count(scales), weight.shape[0]), dtype=dtype).transpose(1, 2)
    return logits, _fake_pooled(features, scales, finest, save_pooled, dtype)


def _fake_pooled(features: Tensor, scales: Sequence[int], finest: int, save_pooled: bool, dtype: torch.dtype) -> Tensor:
    batch, channels = features.shape[:2]
    cells = cell_count(base_scales(scales, finest))
    return features.new_empty((batch, cells, channels) if save_pooled else (0,), dtype=dtype)


def _fake_region_logits_backward(
    grad_logits: Tensor,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    scales: Sequence[int],
    finest: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    features, weights, bias = wanted
    return (
        torch.empty_strided(size, stride, dtype=dtype, device=weight.device)
        if features
        else weight.new_empty(0, dtype=dtype),
        weight.new_empty(weight.shape if weights else (0,)),
        weight.new_empty((weight.shape[0] if bias else 0,), dtype=bias_dtype),
    )


def _fake_gram_kl(pitch: int, student_logits: Tensor, teacher_logits: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    options, save_gradient = GramOptions(*numbers[:-1]), numbers[-1]
    dtype = compute_dtype(student_logits, teacher_logits)
    batch, classes, cells = student_logits.shape
    loss = student_logits.new_empty((batch,) if options.reduction == NONE else (), dtype=dtype)
    if not save_gradient:
        return loss, loss.new_empty(0)
    if options.keeps_logits:
        return loss, loss.new_empty((2, batch, cells, classes))
    return loss, loss.new_empty((batch, cells, _pitched(pitch, classes)))[..., :classes]


def _fake_gram_kl_backward(grad_loss: Tensor, saved: Tensor, dtype: torch.dtype, *numbers: Any) -> Tensor:
    return saved.new_empty(saved.shape[-3:], dtype=dtype).transpose(1, 2)


def _pitched(pitch: int, classes: int) -> int:
    return -(-classes // pitch) * pitch


def _fake_row_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    factors: Sequence[float],
    temperature: float,
    complementary_weight: float,
    save_gradient: bool,
) -> tuple[Tensor, Tensor]:
    batch, classes, regions = student_logits.shape
    losses = student_logits.new_empty((batch, regions))
    if not save_gradient:
        return losses, student_logits.new_empty(0)
    return losses, student_logits.new_empty((batch, regions, classes)).transpose(1, 2)


def _fake_icd_loss(pitch: int, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tensors, (student_finest, _, save_gradient, save_pooled) = arguments[:6], arguments[-4:]
    options = GramOptions(*arguments[6:-4])
    features, weight = tensors[:2]
    dtype, batch, classes = compute_dtype(*tensors), features.shape[0], weight.shape[0]
    loss = features.new_empty((batch,) if options.reduction == NONE else (), dtype=dtype)
    if options.keeps_logits:
        saved_shape: tuple[int, ...] = (2, batch, cell_count(options.scales), classes)
    else:
        cells = cell_count(base_scales(options.scales, student_finest))
        saved_shape = (batch, cells, _pitched(pitch, classes))
    saved = features.new_empty(saved_shape if save_gradient else (0,), dtype=dtype)
    return loss, saved, _fake_pooled(features, options.scales, student_finest, save_pooled, dtype)


def _fake_icd_loss_backward(
    grad_loss: Tensor,
    saved: Tensor,
    pooled: Tensor,
    weight: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    bias_dtype: torch.dtype,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    (*_, finest, wanted), scales = numbers, numbers[0]
    return _fake_region_logits_backward(saved, pooled, weight, size, stride, dtype, bias_dtype, scales, finest, wanted)


_FAKES = {
    "region_features": _fake_region_features,
    "region_features_backward": _fake_region_features_backward,
    "region_logits": _fake_region_logits,
    "region_logits_backward": _fake_region_logits_backward,
    "gram_kl_backward": _fake_gram_kl_backward,
    "icd_loss_backward": _fake_icd_loss_backward,
}
