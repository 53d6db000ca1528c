"""Objectives by name: the options checked, the terms put together."""

from __future__ import annotations

from typing import Any

from icd_kernels.objectives.defaults import METHODS, PRESETS, defaults, icd_weight
from icd_kernels.objectives.objective import Objective
from icd_kernels.objectives.options import check_count, check_flag, check_number
from icd_kernels.objectives.parts import OTHER_PARTS, Values, make_logit_parts
from icd_kernels.options import REDUCTIONS, check_choice


def make_objective(
    method: str,
    *,
    num_classes: int,
    released: bool = False,
    backend: str = "auto",
    preset: str | None = None,
    local_base: bool = True,
    **options: Any,
) -> Objective:
    """The training objective of a method of the paper's Table 1: ce_weight·CE + ramp(epoch)·base_weight·base + γ·iCD.

    Args:
        method: one of :data:`icd_kernels.objectives.METHODS`.
        num_classes: K, at least 2.
        released: the authors' formulas and habits, faults included, for those who must compare.
        backend: of iCD and the local logits, as for `icd_loss`.
        preset: of iCD, "paper", "balanced" or "released": the options of `ICDLoss.paper()` and so on. None is the
            released ones on the right pyramid ("adaptive", unless `released`).
        local_base: of iCD, whether its base is SD-* on local logits, as released, or the plain one on global logits.
        options: the method's own; docs/objectives.md has every one with its default. All have `ce_weight`,
            `base_weight`, `ramp_epochs`, `label_smoothing` and `reduction`.

    Raises:
        TypeError, ValueError: an option is wrong, missing, or none of this method's; the message names it.
    """
    check_choice("method", method, METHODS)
    num_classes = check_count("num_classes", num_classes, 2)
    check_flag("released", released)
    check_flag("local_base", local_base)
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
    if released and preset not in (None, "released"):
        raise ValueError(f"preset must be 'released' or None with released=True, got {preset!r}")
    is_icd = method.startswith("icd-")
    if not is_icd and (preset is not None or not local_base):
        raise TypeError(f"preset and local_base are options of iCD, not of {method!r}")
    values = defaults(method, released=released, preset=preset, local_base=local_base)
    unknown = sorted(set(options) - set(values))
    if unknown:
        raise TypeError(f"method {method!r} has no option {unknown[0]!r}; it has {', '.join(sorted(values))}")
    values = _check_common({**values, **options})
    if is_icd and values["icd_weight"] is None:
        values["icd_weight"] = icd_weight(values["gram"], values["normalize"], num_classes, released=released)
    if method in OTHER_PARTS:
        parts = OTHER_PARTS[method](values)
    else:
        parts = make_logit_parts(method, values, backend, released, local_base)
    settings = {"method": method, "num_classes": num_classes, "released": released, **values}
    if is_icd:
        settings["local_base"] = local_base
    return Objective(parts, settings)


def _check_common(values: Values) -> Values:
    checked = {name: check_number(name, values[name]) for name in ("ce_weight", "base_weight", "ramp_epochs")}
    smoothing = check_number("label_smoothing", values["label_smoothing"])
    if smoothing > 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {smoothing!r}")
    check_choice("reduction", values["reduction"], REDUCTIONS)
    return {**values, **checked, "label_smoothing": smoothing}
