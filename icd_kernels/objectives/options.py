"""Checks of the numbers that objectives are built from."""

from __future__ import annotations

import math

from icd_kernels.options import is_integer, is_number


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
