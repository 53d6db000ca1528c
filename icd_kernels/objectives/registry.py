"""Objectives by name: the options checked, the terms put together."""

from __future__ import annotations

from typing import Any

from icd_kernels.objectives.batch import Needs
from icd_kernels.objectives.defaults import METHODS, PRESETS, defaults
from icd_kernels.objectives.objective import Objective, Parts
from icd_kernels.objectives.options import check_count, check_flag, check_number
from icd_kernels.objectives.sdd import make_row_settings
from icd_kernels.objectives.terms import RELEASED_SCALES, ICDTerm, Regions, RowTerm
from icd_kernels.options import REDUCTIONS, check_choice, check_pyramid, check_scales, make_options

Values = dict[str, Any]


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
        preset: of iCD, "paper" or "released": the options of `ICDLoss.paper()` or `ICDLoss.released()`. None is the
            released ones on the right pyramid ("adaptive", unless `released`).
        local_base: of iCD, whether its base is SD-* on local logits, as released, or the plain one on global logits.
        options: the method's own; docs/objectives.md has every one with its default. All have `ce_weight`,
            `base_weight`, `ramp_epochs`, `label_smoothing` and `reduction`.

    Raises:
        TypeError, ValueError: an option is wrong, missing, or none of this method's; the message names it.
    """
    check_choice("method", method, METHODS)
    check_count("num_classes", num_classes, 2)
    check_flag("released", released)
    check_flag("local_base", local_base)
    if preset is not None:
        check_choice("preset", preset, tuple(PRESETS))
    is_icd = method.startswith("icd-")
    if not is_icd and (preset is not None or not local_base):
        raise TypeError(f"preset and local_base are options of iCD, not of {method!r}")
    values = defaults(method, released=released, preset=preset, local_base=local_base)
    unknown = sorted(set(options) - set(values))
    if unknown:
        raise TypeError(f"method {method!r} has no option {unknown[0]!r}; it has {', '.join(sorted(values))}")
    values = _check_common({**values, **options})
    parts = _make_logit_parts(method, values, backend, released, local_base)
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


def _make_logit_parts(method: str, values: Values, backend: str, released: bool, local_base: bool) -> Parts:
    """KD, DKD and NKD, their SD-* and their iCD. `values` becomes what was checked."""
    family, _, base = method.rpartition("-")
    is_local = family == "sd" or (family == "icd" and local_base)
    row_term = _make_row_term(base, values, is_local=is_local, released=released)
    if not family:
        return Parts(base, row_term)
    scales = values["scales"] = check_scales(values["scales"])
    check_pyramid(values["pyramid"])
    if is_local and scales[0] != 1:
        raise ValueError(f"scales must begin with 1 for SD-*, whose first region is the whole image, got {scales!r}")
    if released and scales != RELEASED_SCALES[: len(scales)]:
        raise ValueError(f"scales must be (1,), (1, 2) or (1, 2, 4) with released=True, got {scales!r}")
    regions = Regions(scales, values["pyramid"], backend, released) if is_local or released else None
    icd = _make_icd_term(values, backend, released) if family == "icd" else None
    return Parts(f"sd-{base}" if is_local else base, row_term, icd, regions, Needs(features=True, head=True))


def _make_row_term(base: str, values: Values, *, is_local: bool, released: bool) -> RowTerm:
    numbers = {name: values.get(name, 0.0) for name in ("alpha", "beta", "gamma")}
    settings = make_row_settings(values["temperature"], **numbers)
    values.update({name: value for name, value in settings._asdict().items() if name in values})
    weight = 1.0
    if is_local:
        weight = values["complementary_weight"] = check_number("complementary_weight", values["complementary_weight"])
    is_faulty = released and (is_local or base != "nkd")  # the global NKD is released without a fault
    return RowTerm(base, settings, is_local=is_local, complementary_weight=weight, released=is_faulty)


def _make_icd_term(values: Values, backend: str, released: bool) -> ICDTerm:
    options = make_options(
        scales=values["scales"],
        gram=values["gram"],
        pyramid=values["pyramid"],
        normalize=values["normalize"],
        temperature=values["icd_temperature"],
        scale_weights=values["scale_weights"],
    )
    values["icd_weight"] = check_number("icd_weight", values["icd_weight"])
    values["scale_weights"] = options.scale_weights
    values["icd_temperature"] = options.temperature
    if not released:
        return ICDTerm(options, backend)
    return ICDTerm(options._replace(temperature=RELEASED_TEMPERATURE), backend, factor=options.temperature**2)


RELEASED_TEMPERATURE = 2.0
"""The released code's iCD divides by this whatever its argument, which only multiplies the loss by its square."""
