"""SP: images that look alike to the teacher shall look alike to the student (Tung and Mori, arXiv:1907.09682)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.checks import compute_dtype
from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.common import CommonOptions
from icd_kernels.objectives.method import Method
from icd_kernels.objectives.targets import reduced


@dataclass(frozen=True)
class SPOptions:
    """SP has none of its own."""


class SPTerm(nn.Module):
    """‖G̃_T - G̃_S‖²_F / B², G̃ the B x B Gram matrix of the maps with every row divided by its norm.

    Image b's share is its row: Σ_j (G̃_T - G̃_S)²_bj / B; their mean is the loss. Reads no target.
    """

    def __init__(self, options: SPOptions) -> None:
        super().__init__()

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student, teacher = batch.student.features, batch.teacher.features
        dtype = compute_dtype(student, teacher)
        difference = similarities(teacher.to(dtype)) - similarities(student.to(dtype))
        return reduced(difference.square().mean(1), reduction)


def similarities(features: Tensor) -> Tensor:
    """G̃ of maps (B, C, H, W): (B, B)."""
    flat = features.flatten(1)
    return F.normalize(torch.mm(flat, flat.t()), dim=1)


SP = Method("sp", CommonOptions(base_weight=3000.0), SPOptions(), SPTerm, needs_features=True)
