"""iCD as a term of an objective: its options, its presets, and its weight beside the other terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import Tensor, nn

from icd_kernels.backends import choose
from icd_kernels.module import ICDLoss, class_form_weight
from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.common import check_number, set_checked
from icd_kernels.objectives.regions import RegionOptions
from icd_kernels.options import GRAMS, NORMALIZATIONS, Options, check_choice, check_temperature, make_options

PRESETS = {
    "paper": ICDLoss.paper().options,
    "balanced": ICDLoss.balanced(num_classes=2).options,
    "released": ICDLoss.released().options,
}
"""iCD's options by name; only its weight depends on the number of classes."""

RELEASED_TEMPERATURE = 2.0
"""The released code's iCD always divides by 2; its argument T only scales the loss by T²."""


@dataclasses.dataclass(frozen=True)
class ICDOptions:
    """iCD's own; its scales and pyramid are those of all local logits."""

    gram: str = PRESETS["released"].gram
    normalize: str = PRESETS["released"].normalize
    icd_temperature: float = PRESETS["released"].temperature
    scale_weights: Iterable[float] | None = None
    icd_weight: float | None = None
    """What iCD counts in the objective; None is :func:`icd_weight`'s."""

    def __post_init__(self) -> None:
        check_choice("gram", self.gram, GRAMS)
        check_choice("normalize", self.normalize, NORMALIZATIONS)
        set_checked(self, icd_temperature=check_temperature(self.icd_temperature, "icd_temperature"))
        if self.icd_weight is not None:
            set_checked(self, icd_weight=check_number("icd_weight", self.icd_weight))


def preset_options(preset: str | None, released: bool) -> tuple[RegionOptions, ICDOptions]:
    """Defaults as a preset of `ICDLoss` has them. None is the released settings on the right pyramid."""
    chosen = PRESETS[preset or "released"]
    temperature = 1.0 if released else chosen.temperature  # the released code's only multiplies, squared
    pyramid = chosen.pyramid if preset is not None else "nested" if released else "adaptive"
    return RegionOptions(pyramid=pyramid), ICDOptions(chosen.gram, chosen.normalize, temperature)


def icd_weight(gram: str, normalize: str, num_classes: int, *, released: bool = False) -> float:
    """γ where none is given: against K in class form, otherwise as released."""
    if gram == "class" and not released:
        return class_form_weight(normalize, num_classes)
    return ICDLoss.released().weight


class ICDTerm(nn.Module):
    """iCD: from the local logits where a base shares them, else fused from the maps."""

    def __init__(self, options: ICDOptions, regions: RegionOptions, backend: str, *, released: bool) -> None:
        super().__init__()
        self.options: Options = make_options(
            scales=regions.scales,
            gram=options.gram,
            pyramid=regions.pyramid,
            normalize=options.normalize,
            temperature=options.icd_temperature,
            scale_weights=options.scale_weights,
        )
        self.factor = 1.0
        if released:
            self.factor = self.options.temperature**2
            self.options = self.options._replace(temperature=RELEASED_TEMPERATURE)
        self.backend = backend

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        student, teacher = batch.student, batch.teacher
        options = self.options._replace(reduction=reduction)
        if student.regions is not None:
            loss = choose(self.backend, student.regions.device.type).gram_kl(student.regions, teacher.regions, options)
        else:
            backend = choose(self.backend, student.features.device.type)
            loss = backend.icd_loss(student.features, *student.head, teacher.features, *teacher.head, options)
        return loss if self.factor == 1 else self.factor * loss
