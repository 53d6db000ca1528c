"""Options of the students: which they are, and how many."""

from __future__ import annotations

import argparse

from training.options import values
from training.options.names import METHODS, NO_DISTILLATION, SMALL


def add_students(group: argparse._ArgumentGroup) -> None:
    """Their network, their images, and what they are compared by."""
    add = group.add_argument
    add(
        "--student",
        type=values.network,
        default=SMALL,
        metavar="NAME",
        help="the student's network, untrained: small (14,000 weights), narrow (4,000), deep (300,000); of the "
        "paper's resnet32x4, resnet50, wrn-40-2, "
        "vgg13, vgg8, mobilenetv2 (of half width), shufflenetv1, shufflenetv2; or torchvision:NAME or timm:NAME, a "
        "model of theirs that classifies the mean of a map (default: %(default)s)",
    )
    add(
        "--train-images",
        type=values.count_or_all,
        default=200,
        metavar="N",
        help="labelled images the student sees, drawn anew for each seed, equally from each class, or all; the teacher "
        "always sees all training images (default: %(default)s images)",
    )
    add(
        "--methods",
        type=values.methods,
        default=(NO_DISTILLATION, "kd", "icd-kd"),
        metavar="LIST",
        help="how students are trained, with commas: none (cross-entropy), sp, crd, ldrld; kd, dkd, nkd, and each of "
        "these on local logits, sd-*, and with iCD, icd-*; or all (default: none,kd,icd-kd; all with --compare)",
    )
    add(
        "--baseline",
        choices=METHODS,
        metavar="METHOD",
        help="the one of --methods that the others are judged against, seed by seed at 95 %% (default: kd where it is "
        "among them, else the first)",
    )
    add(
        "--seeds",
        type=values.positive_int,
        default=5,
        metavar="N",
        help="students of each method; one seed gives every method the same images, start and order "
        "(default: 5 seeds; 3 with --compare)",
    )
    add(
        "--seed",
        type=values.natural,
        default=0,
        metavar="N",
        help="first of the --seeds in a row (default: %(default)s)",
    )
