"""Every method by name, and its objective from a caller's options."""

from __future__ import annotations

import dataclasses
from typing import Any

from icd_kernels.objectives.batch import Needs
from icd_kernels.objectives.common import CommonOptions, check_count, check_flag, recorded
from icd_kernels.objectives.crd import CRD
from icd_kernels.objectives.icd import PRESETS, ICDOptions, ICDTerm, icd_weight, preset_options
from icd_kernels.objectives.ldrld import LDRLD
from icd_kernels.objectives.method import Method
from icd_kernels.objectives.objective import Objective, Parts
from icd_kernels.objectives.regions import RegionOptions, Regions
from icd_kernels.objectives.sdd import ROW_METHODS, ComplementaryOptions, RowTerm
from icd_kernels.objectives.sp import SP
from icd_kernels.options import check_choice

OTHER_METHODS: dict[str, Method] = {method.name: method for method in (SP, CRD, LDRLD)}

METHODS = (*OTHER_METHODS, *(f"{family}{base}" for base in ROW_METHODS for family in ("", "sd-", "icd-")))
"""The rows of the paper's Table 1, in its order."""

Groups = dict[str, Any]
"""A method's options in groups that check themselves: "common", "base", "local", "regions", "icd"."""


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
        num_classes: K, at least 2; with `student_classes` or `teacher_classes` how many pairs of classes there are.
        released: the authors' formulas and habits, faults included, for those who must compare.
        backend: of iCD and the local logits, as for `icd_loss`.
        preset: of iCD, "paper", "balanced" or "released": the options of `ICDLoss.paper()` and so on. None is the
            released ones on the right pyramid ("adaptive", unless `released`).
        local_base: of iCD, whether its base is SD-* on local logits, as released, or the plain one on global logits.
        options: the method's own; docs/objectives.md has every one with its default. All have `ce_weight`,
            `base_weight`, `ramp_epochs`, `label_smoothing`, `reduction`, `student_classes` and `teacher_classes`.

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
    groups = _chosen(method, _defaults(method, released, preset, local_base), options)
    if method in OTHER_METHODS:
        parts = _other_parts(OTHER_METHODS[method], groups)
    else:
        parts, groups = _row_parts(method, groups, num_classes, backend, released)
    settings = {"method": method, "num_classes": num_classes, "released": released}
    for group in groups.values():
        settings.update(recorded(group))
    settings.update(getattr(parts.base, "settings", {}))
    if is_icd:
        settings["local_base"] = local_base
    return Objective(parts, settings)


def _defaults(method: str, released: bool, preset: str | None, local_base: bool) -> Groups:
    """The method's groups of options where a caller gives none."""
    if method in OTHER_METHODS:
        other = OTHER_METHODS[method]
        return {"common": other.common, "base": other.options}
    family, _, base = method.rpartition("-")
    is_local = family == "sd" or (family == "icd" and local_base)
    groups: Groups = {"common": ROW_METHODS[base].common, "base": ROW_METHODS[base].defaults(is_local=is_local)}
    if is_local:
        groups["local"] = ComplementaryOptions()
    if family:
        groups["regions"], icd = preset_options(preset, released)
        if family == "icd":
            groups["icd"] = icd
    return groups


def _chosen(method: str, groups: Groups, options: dict[str, Any]) -> Groups:
    """The groups with a caller's options in them, checked."""
    names = {name: {field.name for field in dataclasses.fields(group)} for name, group in groups.items()}
    known = set().union(*names.values())
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"method {method!r} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return {
        name: dataclasses.replace(group, **{key: options[key] for key in options if key in names[name]})
        for name, group in groups.items()
    }


def _other_parts(method: Method, groups: Groups) -> Parts:
    common: CommonOptions = groups["common"]
    return Parts(common, method.name, method.term(groups["base"]), Needs(features=method.needs_features))


def _row_parts(method: str, groups: Groups, num_classes: int, backend: str, released: bool) -> tuple[Parts, Groups]:
    """The parts of KD, DKD and NKD, their SD-* and their iCD, and the groups with iCD's weights settled."""
    family, _, base = method.rpartition("-")
    local: ComplementaryOptions | None = groups.get("local")
    weight = None if local is None else local.complementary_weight
    term = RowTerm(ROW_METHODS[base], groups["base"], complementary_weight=weight, released=released, backend=backend)
    if not family:
        return Parts(groups["common"], base, term), groups
    region_options: RegionOptions = groups["regions"]
    regions = Regions(region_options, backend, released)
    if local is not None and regions.scales[0] != 1:
        raise ValueError(
            f"scales must begin with 1 for SD-*, whose first region is the whole image, got {regions.scales!r}"
        )
    parts = Parts(
        groups["common"], base if local is None else f"sd-{base}", term, Needs(regions=regions.count), regions=regions
    )
    if family == "sd":
        return parts, groups
    icd, chosen = _icd(groups["icd"], region_options, num_classes, backend, released)
    # The released code pools all of its scales and takes the first ones, which the fused operator cannot.
    parts = parts._replace(icd=icd, icd_weight=chosen.icd_weight or 0.0, is_fused=local is None and not released)
    return parts, {**groups, "icd": chosen}


def _icd(
    options: ICDOptions, regions: RegionOptions, num_classes: int, backend: str, released: bool
) -> tuple[ICDTerm, ICDOptions]:
    """iCD's term, and its options with the weights that none were given for."""
    term = ICDTerm(options, regions, backend, released=released)
    options = dataclasses.replace(options, scale_weights=term.options.scale_weights)
    if options.icd_weight is None:
        weight = icd_weight(options.gram, options.normalize, num_classes, released=released)
        options = dataclasses.replace(options, icd_weight=weight)
    return term, options
