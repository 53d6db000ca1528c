"""From a method's options, which become what was checked of them, to the terms of its objective."""

from __future__ import annotations

from typing import Any

from icd_kernels.objectives.batch import Needs
from icd_kernels.objectives.crd import CRDTerm
from icd_kernels.objectives.ldrld import LDRLDTerm
from icd_kernels.objectives.negatives import Negatives
from icd_kernels.objectives.objective import Parts
from icd_kernels.objectives.options import check_count, check_number
from icd_kernels.objectives.sdd import make_row_settings
from icd_kernels.objectives.sp import SPTerm
from icd_kernels.objectives.terms import RELEASED_SCALES, ICDTerm, Regions, RowTerm
from icd_kernels.options import check_pyramid, check_scales, check_temperature, make_options

Values = dict[str, Any]

RELEASED_TEMPERATURE = 2.0
"""The released code's iCD divides by this whatever its argument, which only multiplies the loss by its square."""


def make_sp_parts(values: Values) -> Parts:
    """SP has no options of its own."""
    return Parts("sp", SPTerm(), needs=Needs(features=True))


def make_ldrld_parts(values: Values) -> Parts:
    """LDRLD."""
    check_count("top_k", values["top_k"], 2)
    values["temperature"] = check_temperature(values["temperature"])
    for name in ("alpha", "beta"):
        values[name] = check_number(name, values[name])
    return Parts("ldrld", LDRLDTerm(**{name: values[name] for name in ("top_k", "temperature", "alpha", "beta")}))


def make_crd_parts(values: Values) -> Parts:
    """CRD. In place of the labels the values record whether there are any, and how many negatives there really are."""
    for name in ("student_channels", "teacher_channels", "dataset_size"):
        if values[name] is None:
            raise ValueError(f"method 'crd' needs the option {name}, an int")
        check_count(name, values[name], 2 if name == "dataset_size" else 1)
    for name in ("num_negatives", "embedding_size"):
        check_count(name, values[name])
    values["temperature"] = check_temperature(values["temperature"])
    momentum = values["momentum"] = check_number("momentum", values["momentum"])
    if momentum > 1:
        raise ValueError(f"momentum must be between 0 and 1, got {momentum!r}")
    labels = values.pop("labels")
    negatives = Negatives(values["dataset_size"], values["num_negatives"], labels)
    values["num_negatives"] = negatives.count
    values["negatives"] = "other images" if labels is None else "other classes"
    term = CRDTerm(
        values["student_channels"],
        values["teacher_channels"],
        negatives,
        embedding_size=values["embedding_size"],
        momentum=momentum,
        temperature=values["temperature"],
    )
    return Parts("crd", term, needs=Needs(features=True))


OTHER_PARTS = {"sp": make_sp_parts, "crd": make_crd_parts, "ldrld": make_ldrld_parts}


def make_logit_parts(method: str, values: Values, backend: str, released: bool, local_base: bool) -> Parts:
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
    check_temperature(values["icd_temperature"], "icd_temperature")
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
