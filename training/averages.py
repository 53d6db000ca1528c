"""Means over seeds, and how sure they are."""

from __future__ import annotations

import math
from statistics import mean, stdev
from typing import NamedTuple

STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided 95 % points of Student's t for 1 to 9 degrees of freedom; the last serves for more, on the safe side."""


class Difference(NamedTuple):
    """Of two methods, seed by seed: they share each seed's images, start and order."""

    mean: float
    standard_error: float | None
    clear: bool
    """Whether the 95 % interval of the mean does not contain 0."""


def standard_error(values: list[float]) -> float | None:
    """Of the mean; None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def difference(values: list[float], others: list[float]) -> Difference:
    """`values` less `others`, paired."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    error = standard_error(differences)
    if error is None:
        return Difference(mean(differences), None, clear=False)
    limit = STUDENT_T[min(len(differences) - 1, len(STUDENT_T)) - 1]
    return Difference(mean(differences), error, clear=abs(mean(differences)) > limit * error)
