"""Every method's options and their defaults: the released settings (docs/objectives.md)."""

from __future__ import annotations

from typing import Any

from icd_kernels.module import ICDLoss, class_form_weight

METHODS = (
    "sp", "crd", "ldrld",
    "kd", "sd-kd", "icd-kd",
    "dkd", "sd-dkd", "icd-dkd",
    "nkd", "sd-nkd", "icd-nkd",
)  # fmt: skip
"""The rows of the paper's Table 1, in its order."""

PRESETS = {
    "paper": ICDLoss.paper().options,
    "balanced": ICDLoss.balanced(num_classes=2).options,
    "released": ICDLoss.released().options,
}
"""iCD's options by name; only its weight depends on the number of classes."""

EVERY_METHOD = {"ce_weight": 1.0, "base_weight": 1.0, "ramp_epochs": 0, "label_smoothing": 0.0, "reduction": "mean"}

OTHERS: dict[str, dict[str, Any]] = {
    "sp": {"base_weight": 3000.0},
    "crd": {
        "base_weight": 0.8,
        "student_channels": None,
        "teacher_channels": None,
        "dataset_size": None,
        "labels": None,
        "num_negatives": 16384,
        "embedding_size": 128,
        "momentum": 0.5,
        "temperature": 0.07,
    },
    "ldrld": {"temperature": 4.0, "top_k": 7, "alpha": 10.5, "beta": 7.0},
}
"""The rivals without local logits. CRD's sizes, None here, have to be given."""

GLOBAL: dict[str, dict[str, Any]] = {
    "kd": {"ce_weight": 0.1, "base_weight": 0.9, "temperature": 4.0},
    "dkd": {"ramp_epochs": 20, "temperature": 4.0, "alpha": 1.0, "beta": 2.0},
    "nkd": {"ramp_epochs": 20, "temperature": 1.0, "gamma": 1.5},
}
LOCAL: dict[str, dict[str, Any]] = {**GLOBAL, "nkd": {"ramp_epochs": 20, "temperature": 4.0, "gamma": 2.0}}
"""SD-*: NKD has settings of its own there."""


def defaults(method: str, *, released: bool, preset: str | None, local_base: bool) -> dict[str, Any]:
    """The options of a method by name, with their defaults. `preset` and `local_base` matter to iCD alone.

    iCD's weight is None, for it depends on other options (:func:`icd_weight`).
    """
    if method in OTHERS:
        return {**EVERY_METHOD, **OTHERS[method]}
    family, _, base = method.rpartition("-")
    is_local = family == "sd" or (family == "icd" and local_base)
    options = {**EVERY_METHOD, **(LOCAL if is_local else GLOBAL)[base]}
    if family:
        options.update(scales=(1, 2, 4), pyramid="nested" if released else "adaptive")
    if is_local:
        options.update(complementary_weight=2.0)
    if family == "icd":
        options.update(icd_defaults(preset, released))
    return options


def icd_defaults(preset: str | None, released: bool) -> dict[str, Any]:
    """iCD's options as a preset of `ICDLoss` has them. None is the released settings on the right pyramid."""
    chosen = PRESETS[preset or "released"]
    options = {
        "gram": chosen.gram,
        "normalize": chosen.normalize,
        "icd_temperature": 1.0 if released else chosen.temperature,  # the released code's only multiplies, squared
        "scale_weights": None,
        "icd_weight": None,
    }
    return options if preset is None else {**options, "pyramid": chosen.pyramid}


def icd_weight(gram: str, normalize: str, num_classes: int, *, released: bool = False) -> float:
    """γ where none is given: against K in class form, otherwise as released."""
    if gram == "class" and not released:
        return class_form_weight(normalize, num_classes)
    return ICDLoss.released().weight
