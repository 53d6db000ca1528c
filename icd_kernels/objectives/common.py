"""Options that every method has, and the checks that options are made with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from icd_kernels.options import REDUCTIONS, check_choice, is_integer, is_number


@dataclass(frozen=True)
class CommonOptions:
    """The factors of the objective, its reduction, and the classes it speaks of."""

    ce_weight: float = 1.0
    base_weight: float = 1.0
    ramp_epochs: float = 0.0
    label_smoothing: float = 0.0
    """Of cross-entropy alone."""
    reduction: str = "mean"
    student_classes: Iterable[int] | None = None
    """Rows of the student's head, each paired with the teacher's at the same place; None is all, in their order."""
    teacher_classes: Iterable[int] | None = None

    def __post_init__(self) -> None:
        smoothing = check_number("label_smoothing", self.label_smoothing)
        if smoothing > 1:
            raise ValueError(f"label_smoothing must be between 0 and 1, got {smoothing!r}")
        set_checked(
            self,
            ce_weight=check_number("ce_weight", self.ce_weight),
            base_weight=check_number("base_weight", self.base_weight),
            ramp_epochs=check_number("ramp_epochs", self.ramp_epochs),
            label_smoothing=smoothing,
            reduction=check_choice("reduction", self.reduction, REDUCTIONS),
            student_classes=_check_classes("student_classes", self.student_classes),
            teacher_classes=_check_classes("teacher_classes", self.teacher_classes),
        )


def set_checked(options: Any, **values: Any) -> None:
    """Replaces fields of a frozen dataclass by what was checked of them; for its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def recorded(options: Any) -> dict[str, Any]:
    """The fields of a group of options as plain values for records; those that are None or marked are left out."""
    values = {
        each.name: getattr(options, each.name) for each in fields(options) if each.metadata.get("is_recorded", True)
    }
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, tuple)):
        return value
    return "a schedule" if callable(value) and not hasattr(value, "grad_fn") else "a tensor"


def check_number(name: str, value: float, minimum: float = 0.0) -> float:
    """A finite number of `minimum` or more; `name` is what the error calls it."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    if not minimum <= value < math.inf:
        raise ValueError(f"{name} must be finite and {minimum:g} or more, got {value!r}")
    return float(value)


def check_count(name: str, value: int, minimum: int = 1) -> int:
    """An int of `minimum` or more."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be {minimum} or more, got {value!r}")
    return int(value)


def check_flag(name: str, value: bool) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {value!r}")
    return value


def _check_classes(name: str, classes: Iterable[int] | None) -> tuple[int, ...] | None:
    """Indices of rows of a head, each once."""
    if classes is None:
        return None
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise TypeError(f"{name} must be a sequence of ints or None, got {type(classes).__name__}: {classes!r}")
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    checked = tuple(check_count(f"every class of {name}", index, 0) for index in classes)
    if len(set(checked)) != len(checked):
        twice = next(index for index in checked if checked.count(index) > 1)
        raise ValueError(f"{name} must hold every class once, got {twice} twice")
    return checked
