"""The terms made of logits: a row loss on global or local logits, and iCD on local ones."""

from __future__ import annotations

from torch import Tensor, nn

from icd_kernels.backends import choose
from icd_kernels.geometry import cell_count
from icd_kernels.objectives import released as released_code
from icd_kernels.objectives.batch import Batch, View
from icd_kernels.objectives.rows import RowSettings
from icd_kernels.objectives.sdd import sdd_rows
from icd_kernels.objectives.targets import reduced
from icd_kernels.options import Options

RELEASED_SCALES = (1, 2, 4)
"""The grid the released code pools from and every scale set it takes the beginning of."""


class Regions:
    """A network's local logits: pooled and projected once for all terms that read them."""

    def __init__(self, scales: tuple[int, ...], pyramid: str, backend: str, released: bool) -> None:
        self.count = cell_count(scales)
        self.scales = RELEASED_SCALES if released else scales
        self.pyramid = pyramid
        self.backend = backend

    def __call__(self, view: View) -> Tensor:
        """(B, K, N) from features (B, C, H, W) and head."""
        backend = choose(self.backend, view.features.device.type)
        return backend.region_logits(view.features, *view.head, self.scales, self.pyramid)[:, :, : self.count]


class RowTerm(nn.Module):
    """KD, DKD or NKD, on the networks' logits or on every region's (SD-*)."""

    def __init__(
        self, base: str, settings: RowSettings, *, is_local: bool, complementary_weight: float, released: bool
    ) -> None:
        super().__init__()
        self.base = base
        self.settings = settings
        self.is_local = is_local
        self.complementary_weight = complementary_weight
        self.released = released

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student, teacher = (
            view.regions if self.is_local else view.logits[:, :, None] for view in (batch.student, batch.teacher)
        )
        rows = sdd_rows(
            student, teacher, batch.target_class, self.base, self.settings, self.complementary_weight, self.released
        )
        loss = reduced(rows, reduction)
        return released_code.without_nan(loss) if self.released else loss


class ICDTerm(nn.Module):
    """iCD: from the local logits where a base shares them, else fused from the maps."""

    def __init__(self, options: Options, backend: str, factor: float = 1.0) -> None:
        super().__init__()
        self.options = options
        self.backend = backend
        self.factor = factor

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student, teacher = batch.student, batch.teacher
        options = self.options._replace(reduction=reduction)
        if student.regions is not None:
            loss = choose(self.backend, student.regions.device.type).gram_kl(student.regions, teacher.regions, options)
        else:
            backend = choose(self.backend, student.features.device.type)
            loss = backend.icd_loss(student.features, *student.head, teacher.features, *teacher.head, options)
        return loss if self.factor == 1 else self.factor * loss
