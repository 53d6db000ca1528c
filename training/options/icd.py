"""Options of iCD, most of which a preset sets."""

from __future__ import annotations

import argparse

from training.options import values
from training.options.names import PRESETS


def add_preset(group: argparse._ArgumentGroup) -> None:
    """Where the others start from, and the base they are added to."""
    add = group.add_argument
    add(
        "--preset",
        choices=PRESETS,
        default="balanced",
        help="where the options below start from. balanced: gram class, pyramid adaptive, normalize zscore, "
        "temperature 4, beside a base on global logits; paper: the same with normalize none; released (the authors' "
        "code): gram spatial, pyramid nested, normalize l2, temperature 2, beside a base on local logits; corrected: "
        "released with pyramid adaptive (default: balanced; corrected with --compare)",
    )
    add(
        "--local-base",
        action=argparse.BooleanOptionalAction,
        help="whether the base beside iCD is SD-* on local logits, or the plain one on global logits "
        "(default: the preset's)",
    )


def add_grams(group: argparse._ArgumentGroup) -> None:
    """What is compared: Gram matrices, and of which local logits."""
    add = group.add_argument
    add(
        "--gram",
        metavar="NAME",
        help="which Gram matrices are compared: class, spatial or sample (default: the preset's)",
    )
    add(
        "--pyramid",
        metavar="NAME",
        help="how coarse cells are pooled, for SD-* too: adaptive or nested (default: the preset's)",
    )
    add(
        "--normalize",
        metavar="NAME",
        help="what is done to each local logit vector before its Gram. With none, Gram entries of a confident teacher "
        "reach hundreds, the class-form loss tens and its gradient likewise. With zscore or l2 the entries are at most "
        "the number of classes, or 1, whatever the teacher; the package names others (default: the preset's)",
    )
    add(
        "--temperature",
        type=values.positive,
        metavar="T",
        help="Gram matrices are divided by it (default: the preset's)",
    )


def add_scales(group: argparse._ArgumentGroup) -> None:
    """At which scales, with which weights, by what it is computed."""
    add = group.add_argument
    add(
        "--scales",
        type=values.list_of(values.positive_int),
        metavar="LIST",
        help="a scale m compares m x m cells of the maps; with commas; SD-* too, where it has to begin with 1 "
        "(default: 1,2,4)",
    )
    add(
        "--scale-weights",
        type=values.list_of(values.non_negative),
        metavar="LIST",
        help="one weight a scale, with commas (default: by rank, finer more: 1/6,2/6,3/6)",
    )
    add(
        "--icd-weight",
        type=values.non_negative,
        metavar="X",
        help="the factor of iCD in the objective (default: 2, as the authors' code has it; with gram class, for K "
        "classes, 0.3/K with normalize none, 30/K with zscore, 1 with l2)",
    )
    add(
        "--backend",
        choices=("auto", "triton", "cuda", "cpp", "reference"),
        default="auto",
        help="what computes iCD; auto: the best that runs here (default: %(default)s)",
    )
