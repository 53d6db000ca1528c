"""What a method without local logits is: its options and its term."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from icd_kernels.objectives.common import CommonOptions


class Method(NamedTuple):
    """A method of the table that does not work on rows of logits."""

    name: str
    common: CommonOptions
    options: Any
    """Its own defaults, a frozen dataclass that checks itself."""
    term: Callable[[Any], nn.Module]
    """From options to a term (objective.Parts.base); its `settings`, where it has any, are added to the records."""
    needs_features: bool = False
