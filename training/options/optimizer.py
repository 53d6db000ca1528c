"""Options of the students' training."""

from __future__ import annotations

import argparse

from training.options import values
from training.schedule import SCHEDULES


def add_epochs(group: argparse._ArgumentGroup) -> None:
    """How long and how fast they learn."""
    add = group.add_argument
    add(
        "--epochs",
        type=values.positive_int,
        default=30,
        metavar="N",
        help="passes of a student over its images (default: %(default)s epochs)",
    )
    add(
        "--batch-size",
        type=values.batch_size,
        default=16,
        metavar="N",
        help="images a step (default: %(default)s images)",
    )
    add(
        "--lr",
        type=values.positive,
        default=0.1,
        metavar="X",
        help="the students' learning rate at the start; SGD, momentum 0.9 (default: %(default)s)",
    )


def add_optimizer(group: argparse._ArgumentGroup) -> None:
    """How the learning rate goes down, and what else a step is made of."""
    add = group.add_argument
    add(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help="the learning rate goes down to 0 along a cosine, or by a factor of 0.1 at each of --milestones "
        "(default: %(default)s)",
    )
    add(
        "--milestones",
        type=values.list_of(values.positive_int),
        metavar="LIST",
        help="for --schedule steps: finished epochs, with commas (default: 5/8, 3/4 and 7/8 of --epochs, as the "
        "paper's 150,180,210 of 240)",
    )
    add(
        "--weight-decay",
        type=values.non_negative,
        default=5e-4,
        metavar="X",
        help="of the students (default: %(default)s)",
    )
    add(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Nesterov's momentum; the paper's recipes go without (default: on)",
    )
    add(
        "--clip",
        type=values.positive,
        metavar="X",
        help="the largest norm of all of a step's gradients together (default: none)",
    )
    add(
        "--amp",
        choices=("off", "bf16", "fp16"),
        default="off",
        help="what students, and the teacher beside them, run in: float32, or autocast to bfloat16 (GPU or CPU) or "
        "float16 (GPU; the loss is scaled); teachers are trained, and all are tested, in float32 (default: "
        "%(default)s)",
    )
    add(
        "--compile",
        action="store_true",
        help="students, and the teacher beside them, run under torch.compile: the first steps wait for its compiler "
        "(default: off)",
    )
