"""What every term of an objective is given of a batch: checked once, the teacher a constant."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icd_kernels.checks import check_network, compute_dtype
from icd_kernels.heads import head_parameters, is_linear
from icd_kernels.network import NetworkOutput
from icd_kernels.objectives.classes import ClassPairs


class View(NamedTuple):
    """One network's batch as the terms read it, of the paired classes alone."""

    logits: Tensor
    """[B, K] in the dtype of the math."""
    every_logit: Tensor
    """[B, all classes of the network], likewise: what cross-entropy reads of the student."""
    features: Any
    """[B, C, H, W], a Tensor where the objective needs it: make_view has seen to that."""
    head: Any
    """Weight [K, C] and bias [K] or None, or a callable that is not linear, likewise."""
    regions: Any = None
    """[B, K, N] local logits, a Tensor where a term shares them."""


class Batch(NamedTuple):
    """Both networks' views and what the data set says of the images."""

    student: View
    teacher: View
    target_class: Tensor
    """[B] int64, pairs of classes"""
    indices: Tensor | None
    """[B] int64: the images' rows in the data set."""
    epoch: float | None
    masked: Tensor | None
    """[B, K] where either network has no such class; None where no image lacks any."""


class Needs(NamedTuple):
    """What an objective's terms read beside the logits."""

    features: bool = False
    regions: int = 0
    """Local logits of this many regions; features and head make them where they are not given."""


def make_view(output: NetworkOutput, name: str, pairs: ClassPairs, needs: Needs) -> View:
    """Checks one network's output; `name` is "student" or "teacher"."""
    if not isinstance(output, NetworkOutput):
        raise TypeError(f"{name} must be an icd_kernels.NetworkOutput, got {type(output).__name__}")
    logits = output.logits
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        came = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"{name}.logits must be a floating torch.Tensor of shape (B, {pairs.count}), got {came}")
    if logits.ndim != 2 or (pairs.by_network[name] is None and logits.shape[1] != pairs.count):
        raise ValueError(f"{name}.logits must have shape (B, {pairs.count}), got {tuple(logits.shape)}")
    pairs.check_width(name, f"{name}.logits", logits.shape[1])
    head, regions = None, None
    if needs.regions and output.regions is not None:
        regions = _regions(output.regions, logits, name, needs.regions)
        regions = pairs.paired(name, regions, 1)
    if needs.features or (needs.regions and regions is None):
        _check_features(output, logits, name, can_be_regions=not needs.features)
    if needs.regions and regions is None:
        head = _head(output, f"{name}.head", name)
        if isinstance(head, tuple):
            weight, bias = head
            head = pairs.paired(name, weight, 0), None if bias is None else pairs.paired(name, bias, 0)
    every_logit = logits.to(compute_dtype(logits))
    return View(pairs.paired(name, every_logit, 1), every_logit, output.features, head, regions)


def _check_features(output: NetworkOutput, logits: Tensor, name: str, *, can_be_regions: bool) -> None:
    features = output.features
    if features is None:
        instead = f", or {name}.regions be given" if can_be_regions else ""
        raise ValueError(f"{name}.features must be the penultimate map (B, C, H, W) for this method{instead}, got None")
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}.features must be a torch.Tensor of shape (B, C, H, W), got {type(features).__name__}")
    if features.ndim != 4 or features.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{name}.features must have shape ({logits.shape[0]}, C, H, W) beside {logits.shape[0]} rows of logits, "
            f"got {tuple(features.shape)}"
        )


def _regions(regions: Tensor, logits: Tensor, name: str, count: int) -> Tensor:
    """Local logits that came with the network's output, checked against its logits."""
    expected = (*logits.shape, count)
    if not isinstance(regions, Tensor) or not regions.is_floating_point():
        came = regions.dtype if isinstance(regions, Tensor) else type(regions).__name__
        raise TypeError(f"{name}.regions must be a floating torch.Tensor of shape {expected}, got {came}")
    if regions.shape != expected:
        raise ValueError(f"{name}.regions must have shape {expected}, got {tuple(regions.shape)}")
    if regions.device != logits.device:
        raise ValueError(f"{name}.regions must be on the device of {name}.logits, got {regions.device}")
    return regions


def _head(output: NetworkOutput, head_name: str, name: str) -> Any:
    """Weight and bias, checked against features and logits; a head that is not linear as it is."""
    if output.head is None:
        raise ValueError(f"{head_name} must be the classifier for this method, got None")
    if not is_linear(output.head):
        return output.head
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
        view.every_logit.detach(),
        None if view.features is None else view.features.detach(),
        (head[0].detach(), None if head[1] is None else head[1].detach()) if isinstance(head, tuple) else head,
        None if view.regions is None else view.regions.detach(),
    )


def check_masks(batch: Batch, has_icd: bool) -> None:
    """Raises ValueError where an image is left without a class, or iCD without a head. Waits for the device.

    iCD relates classes to each other by their heads, which every image shares.
    """
    if batch.masked is not None and batch.masked.all(1).any().tolist():
        raise ValueError("student.logits and teacher.logits must leave every image a class, got -inf at all of them")
    if not has_icd:
        return
    for name, view in (("student", batch.student), ("teacher", batch.teacher)):
        bias = view.head[1] if isinstance(view.head, tuple) else None
        if bias is not None and (bias.detach() == -math.inf).any().tolist():
            raise ValueError(
                f"{name}.head must have a finite bias for iCD, got -inf: leave classes out by student_classes and "
                "teacher_classes"
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
