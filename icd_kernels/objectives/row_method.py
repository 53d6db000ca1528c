"""What a method of logit rows is: its options, its formula, and the factors by which the fused operator has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from icd_kernels.objectives.common import CommonOptions, check_flag, set_checked
from icd_kernels.objectives.temperature import check_temperature_option


@dataclass(frozen=True)
class RowOptions:
    """What every row loss depends on. A method's `rows` gets a number or a tensor as temperature, never a schedule."""

    temperature: Any = 4.0
    """A :data:`icd_kernels.objectives.temperature.Temperature`."""

    def __post_init__(self) -> None:
        set_checked(self, temperature=check_temperature_option(self.temperature))


@dataclass(frozen=True)
class StandardizableOptions(RowOptions):
    """Of methods whose logits can be z-scored over the classes first (Sun et al., arXiv:2403.01427)."""

    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("standardize", self.standardize)


class RowFactors(NamedTuple):
    """A row loss as the sum of five, each times its factor; y is the true class, a hat means "among the others".

    What the operator row_losses is given in place of a method's name and options.
    """

    whole: float = 0.0
    """of KL(p ‖ q) over all classes, at the temperature."""
    binary: float = 0.0
    """of the KL of (y, all others), at the temperature."""
    others: float = 0.0
    """of KL(p̂ ‖ q̂), at the temperature."""
    entropy: float = 0.0
    """of the entropy of p̂, a constant, at the temperature."""
    target: float = 0.0
    """of -p_y log q_y, at temperature 1."""


RowLoss = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""Rows (B, N) from student and teacher logits (B, K, N), class indices (B,) and the method's options."""


class RowMethod(NamedTuple):
    """A method of logit rows; its SD-* and iCD forms follow from it."""

    name: str
    common: CommonOptions
    options: Any
    """Defaults on global logits, an instance of :class:`RowOptions`."""
    rows: RowLoss
    factors: Callable[[Any], RowFactors]
    """The same as `rows`, of options whose temperature is a number."""
    local_options: Any = None
    """Defaults on local logits, where they differ."""
    released_rows: RowLoss | None = None
    """As the authors' code has it, where that differs."""
    reads_target: bool = True

    def defaults(self, *, is_local: bool) -> Any:
        """The method's options where the caller gives none."""
        return self.local_options if is_local and self.local_options is not None else self.options
