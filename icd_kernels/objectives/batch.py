"""What every term of an objective is given of a batch: checked once, the teacher a constant."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from icd_kernels.checks import check_network, compute_dtype
from icd_kernels.heads import head_parameters
from icd_kernels.network import NetworkOutput


class View(NamedTuple):
    """One network's batch as the terms read it."""

    logits: Tensor
    """[B, K] in the dtype of the math."""
    features: Any
    """[B, C, H, W], a Tensor where the objective needs it: make_view has seen to that."""
    head: Any
    """Weight [K, C] and bias [K] or None, likewise."""
    regions: Any = None
    """[B, K, N] local logits, a Tensor where a term shares them."""


class Batch(NamedTuple):
    """Both networks' views and what the data set says of the images."""

    student: View
    teacher: View
    target_class: Tensor
    """[B] int64"""
    indices: Tensor | None
    """[B] int64: the images' rows in the data set."""


class Needs(NamedTuple):
    """What an objective's terms read beside the logits."""

    features: bool = False
    head: bool = False


def make_view(output: NetworkOutput, name: str, classes: int, needs: Needs) -> View:
    """Checks one network's output; `name` is "student" or "teacher"."""
    if not isinstance(output, NetworkOutput):
        raise TypeError(f"{name} must be an icd_kernels.NetworkOutput, got {type(output).__name__}")
    logits = output.logits
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name}.logits must be a floating torch.Tensor of shape (B, {classes}), got {came}")
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise ValueError(f"{name}.logits must have shape (B, {classes}), got {tuple(logits.shape)}")
    if needs.features:
        _check_features(output.features, logits, name)
    head = _head(output, f"{name}.head", name) if needs.head else None
    return View(logits.to(compute_dtype(logits)), output.features, head)


def _check_features(features: Tensor | None, logits: Tensor, name: str) -> None:
    if features is None:
        raise ValueError(f"{name}.features must be the penultimate map (B, C, H, W) for this method, got None")
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}.features must be a torch.Tensor of shape (B, C, H, W), got {type(features).__name__}")
    if features.ndim != 4 or features.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{name}.features must have shape ({logits.shape[0]}, C, H, W) beside {logits.shape[0]} rows of logits, "
            f"got {tuple(features.shape)}"
        )


def _head(output: NetworkOutput, head_name: str, name: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, checked against features and logits."""
    if output.head is None:
        raise ValueError(f"{head_name} must be the classifier for this method, got None")
    weight, bias = head_parameters(output.head, head_name)
    assert output.features is not None  # whatever reads the head reads the map
    check_network(output.features, weight, bias, f"{name}_")
    if weight.shape[0] != output.logits.shape[1]:
        raise ValueError(
            f"{head_name} must have a row for each of the {output.logits.shape[1]} classes of {name}.logits, "
            f"got weight {tuple(weight.shape)}"
        )
    return weight, bias


def as_constant(view: View) -> View:
    """The same without its history: no gradient reaches the teacher."""
    head = view.head
    return View(
        view.logits.detach(),
        None if view.features is None else view.features.detach(),
        None if head is None else (head[0].detach(), None if head[1] is None else head[1].detach()),
        None if view.regions is None else view.regions.detach(),
    )


def check_indices(indices: Tensor | None, batch: int) -> Tensor:
    """The images' rows in the data set, (B,) int64."""
    if not isinstance(indices, Tensor):
        raise ValueError(
            "indices must be the images' positions in the data set for this method (IndexedDataset gives them), "
            f"got {type(indices).__name__}"
        )
    if indices.dtype != torch.int64 or indices.shape != (batch,):
        raise ValueError(
            f"indices must be an int64 tensor of shape {(batch,)}, got {indices.dtype} {tuple(indices.shape)}"
        )
    return indices
