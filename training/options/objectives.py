"""Options of the methods other than iCD."""

from __future__ import annotations

import argparse

from training.options import values


def add_objectives(group: argparse._ArgumentGroup) -> None:
    """Factors, ramps and counts of single methods."""
    add = group.add_argument
    add(
        "--kd-weight",
        type=values.share,
        default=0.9,
        metavar="X",
        help="kd, sd-kd, icd-kd: the factor of KD, 0 to 1; CE gets the rest (default: %(default)s)",
    )
    add(
        "--kd-temperature",
        type=values.positive,
        default=4.0,
        metavar="T",
        help="of the same: KD is T²·KL(teacher ‖ student) of the logits divided by T (default: %(default)s)",
    )
    add(
        "--dkd-beta",
        type=values.non_negative,
        default=2.0,
        metavar="X",
        help="dkd, sd-dkd, icd-dkd: the factor of the classes other than the true one (default: %(default)s)",
    )
    add(
        "--ramp-epochs",
        type=values.natural,
        metavar="N",
        help="DKD and NKD in all three forms: epochs over which their factor grows to itself; 0 is none (default: a "
        "twelfth of --epochs, as the authors' 20 of 240)",
    )
    add(
        "--warmup-epochs",
        type=values.natural,
        metavar="N",
        help="ldrld: epochs over which the learning rate grows to itself; 0 is none (default: a twelfth of --epochs, "
        "as the authors' 20 of 240)",
    )
    add(
        "--crd-negatives",
        type=values.positive_int,
        default=16384,
        metavar="N",
        help="crd: images each one is contrasted with; at most those of other classes that there are "
        "(default: %(default)s)",
    )
