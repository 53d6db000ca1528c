"""The options of the loss: what each may be, its default, and the error a wrong one gets."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import NamedTuple

GRAMS = ("class", "spatial", "sample")
PYRAMIDS = ("adaptive", "nested")
NORMALIZATIONS = ("none", "l2", "zscore", "center")
REDUCTIONS = ("mean", "sum", "none")

DEFAULT_SCALES = (1, 2, 4)
DEFAULT_TEMPERATURE = 4.0

NORM_FLOOR = 1e-12
"""Smallest norm (`l2`) or standard deviation (`zscore`) by which a logit vector is divided."""


def normalization(name: str, classes: int) -> tuple[float, float]:
    """(centre, spread): ẑ = u/r with u = z - centre·mean(z) and r = max(spread·‖u‖, floor), or 1 where spread is 0.

    Over K classes the norm of a centred vector is K^½ times its standard deviation.
    """
    centre = 1.0 if name in ("zscore", "center") else 0.0
    spread = {"l2": 1.0, "zscore": int(classes) ** -0.5}.get(name, 0.0)
    return centre, spread


class Options(NamedTuple):
    """Every option of the loss, checked. Built by :func:`make_options` and constant from there on."""

    scales: tuple[int, ...]
    scale_weights: tuple[float, ...]
    gram: str
    pyramid: str
    normalize: str
    temperature: float
    reduction: str


def is_integer(value: object) -> bool:
    """Whether it is a whole number of Python's or NumPy's; True and False are not."""
    return not isinstance(value, bool) and (isinstance(value, (int, numbers.Integral)))


def is_number(value: object) -> bool:
    """Whether it is a real number of Python's or NumPy's; True and False are not."""
    return not isinstance(value, bool) and (isinstance(value, (int, float, numbers.Real)))


def rank_weights(count: int) -> tuple[float, ...]:
    """The default scale weights (1, 2, .., S) / (S(S+1)/2), in the order given: finer counts more."""
    total = count * (count + 1) / 2
    return tuple(rank / total for rank in range(1, count + 1))


def make_options(
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    gram: str = "class",
    pyramid: str = "adaptive",
    normalize: str = "none",
    temperature: float = DEFAULT_TEMPERATURE,
    scale_weights: Iterable[float] | None = None,
    reduction: str = "mean",
) -> Options:
    """Checks every option and returns them together.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: an option outside its range; the message names it, what was expected and what came.
    """
    checked_scales = check_scales(scales)
    return Options(
        scales=checked_scales,
        scale_weights=_check_scale_weights(scale_weights, len(checked_scales)),
        gram=check_choice("gram", gram, GRAMS),
        pyramid=check_pyramid(pyramid),
        normalize=check_choice("normalize", normalize, NORMALIZATIONS),
        temperature=check_temperature(temperature),
        reduction=check_choice("reduction", reduction, REDUCTIONS),
    )


def check_scales(scales: Iterable[int]) -> tuple[int, ...]:
    """Scales as a tuple: at least one, each an int of 1 or more, in any order."""
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Iterable):
        raise TypeError(f"scales must be a sequence of ints, got {type(scales).__name__}: {scales!r}")
    checked = tuple(scales)
    for scale in checked:
        if not is_integer(scale):
            raise TypeError(f"scales must hold ints, got {type(scale).__name__} in {checked!r}")
    if not checked or min(checked) < 1:
        raise ValueError(f"scales must hold at least one scale, each 1 or more, got {checked!r}")
    return tuple(int(scale) for scale in checked)


def check_pyramid(pyramid: str) -> str:
    """One of :data:`PYRAMIDS`."""
    return check_choice("pyramid", pyramid, PYRAMIDS)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of `choices`; `name` is what the error calls it."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {choices}, got {type(value).__name__}: {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return value


def check_temperature(temperature: float, name: str = "temperature") -> float:
    """A finite number above 0; `name` is what the error calls it."""
    if not is_number(temperature):
        raise TypeError(f"{name} must be a number, got {type(temperature).__name__}: {temperature!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {temperature!r}")
    return float(temperature)


def _check_scale_weights(weights: Iterable[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return rank_weights(count)
    if isinstance(weights, (str, bytes)) or not isinstance(weights, Iterable):
        raise TypeError(
            f"scale_weights must be a sequence of numbers or None, got {type(weights).__name__}: {weights!r}"
        )
    checked = tuple(weights)
    for weight in checked:
        if not is_number(weight):
            raise TypeError(f"scale_weights must hold numbers, got {type(weight).__name__} in {checked!r}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"scale_weights must be finite and 0 or more, got {checked!r}")
    if len(checked) != count:
        raise ValueError(
            f"scale_weights must have one weight for each of the {count} scales, got {len(checked)}: {checked!r}"
        )
    return tuple(float(weight) for weight in checked)
