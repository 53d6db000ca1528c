"""Local logits as every term of an objective shares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from icd_kernels.backends import choose
from icd_kernels.by_head import logits_by_head
from icd_kernels.geometry import cell_count
from icd_kernels.objectives.batch import View
from icd_kernels.objectives.classes import ClassPairs
from icd_kernels.objectives.common import set_checked
from icd_kernels.options import check_pyramid, check_scales

RELEASED_SCALES = (1, 2, 4)
"""The grid the released code pools from and every scale set it takes the beginning of."""


@dataclass(frozen=True)
class RegionOptions:
    """Of SD-* and iCD."""

    scales: Iterable[int] = (1, 2, 4)
    pyramid: str = "adaptive"

    def __post_init__(self) -> None:
        set_checked(self, scales=check_scales(self.scales), pyramid=check_pyramid(self.pyramid))


class Regions:
    """A network's local logits: pooled and projected once for all terms that read them."""

    def __init__(self, options: RegionOptions, backend: str, released: bool) -> None:
        scales = check_scales(options.scales)
        if released and scales != RELEASED_SCALES[: len(scales)]:
            raise ValueError(f"scales must be (1,), (1, 2) or (1, 2, 4) with released=True, got {scales!r}")
        self.count = cell_count(scales)
        self.scales = RELEASED_SCALES if released else scales
        self.pyramid = options.pyramid
        self.backend = backend

    def __call__(self, view: View, name: str, pairs: ClassPairs) -> Tensor:
        """(B, K, N): those that the view came with, or made from its features (B, C, H, W) and head."""
        if view.regions is not None:
            return view.regions
        backend = choose(self.backend, view.features.device.type)
        regions = logits_by_head(view.features, view.head, self.scales, self.pyramid, backend, name)
        if not isinstance(view.head, tuple):
            if regions.shape[1] != view.every_logit.shape[1]:
                raise ValueError(
                    f"{name}.head must return the {view.every_logit.shape[1]} classes of {name}.logits, "
                    f"got {regions.shape[1]}"
                )
            regions = pairs.paired(name, regions, 1)
        return regions[:, :, : self.count]
