"""From names to numbers: what the operators are given instead of options. No other place lowers them.

The reference alone keeps the names: it is the judge of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from icd_kernels.geometry import finest_grid
from icd_kernels.options import GRAMS, REDUCTIONS, Options, normalization

CLASS, SPATIAL, SAMPLE = range(len(GRAMS))
"""Numbers of :data:`icd_kernels.options.GRAMS`."""

MEAN, SUM, NONE = range(len(REDUCTIONS))
"""Numbers of :data:`icd_kernels.options.REDUCTIONS`."""


class GramOptions(NamedTuple):
    """How local logits become a loss: the numbers that stand in an operator's schema, in its order."""

    scales: tuple[int, ...]
    cell_weights: tuple[float, ...]
    """What one Gram matrix of each scale weighs in its image's loss: the scale's weight over its number of matrices."""
    gram: int
    normalize: tuple[float, float]
    """(centre, spread), see :func:`icd_kernels.options.normalization`."""
    temperature: float
    reduction: int

    @property
    def keeps_logits(self) -> bool:
        """Whether backward needs both networks' logits rather than dl/dz: every image's upstream gradient enters the
        gradients of the others."""
        return self.gram == SAMPLE and self.reduction == NONE

    def without_temperature(self) -> GramOptions:
        """The same for every temperature: what compiled code and sizes follow from, as a key to remember them by."""
        scales, weights, gram, normalize, _, reduction = self
        return GramOptions(tuple(scales), tuple(weights), gram, (normalize[0], normalize[1]), 0.0, reduction)


class Problem(NamedTuple):
    """All numbers of `icd_loss`."""

    options: GramOptions
    student_finest: int
    """Side of the grid that all regions of the student's map are means over; 0 where each cell is pooled by itself."""
    teacher_finest: int


def lower_gram(options: Options, classes: int) -> GramOptions:
    """The numbers of the Gram stage for K classes."""
    gram = GRAMS.index(options.gram)
    matrices = [1 if gram == SPATIAL else scale * scale for scale in options.scales]
    return GramOptions(
        options.scales,
        tuple([weight / count for weight, count in zip(options.scale_weights, matrices, strict=True)]),
        gram,
        normalization(options.normalize, classes),
        options.temperature,
        REDUCTIONS.index(options.reduction),
    )


def lower(options: Options, classes: int, student_size: Sequence[int], teacher_size: Sequence[int]) -> Problem:
    """The numbers of `icd_loss` for K classes and maps of these sizes (B, C, H, W)."""
    if not torch.compiler.is_compiling():  # which must not trace the memory
        try:
            return _remembered(options, classes, student_size, teacher_size)
        except TypeError:  # sizes that are symbols, as of make_fx, cannot be remembered
            pass
    return _lower(options, classes, student_size, teacher_size)


def _lower(options: Options, classes: int, student_size: Sequence[int], teacher_size: Sequence[int]) -> Problem:
    return Problem(
        lower_gram(options, classes),
        finest_grid(options.scales, options.pyramid, *student_size[2:]),
        finest_grid(options.scales, options.pyramid, *teacher_size[2:]),
    )


_remembered = lru_cache(maxsize=1024)(_lower)
