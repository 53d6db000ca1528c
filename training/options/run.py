"""Options of the run as a whole."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.options import values
from training.recipes import recipe_names


def add_results(group: argparse._ArgumentGroup) -> None:
    """What is written, and sets of options under one name."""
    add = group.add_argument
    add(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="results (default: runs/demo; runs/compare with --compare)",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="also write every epoch for TensorBoard, into the folder tensorboard in --out (default: off)",
    )
    add(
        "--recipe",
        metavar="NAME",
        help="options from a JSON file, of the paper's recipes by name or by its path; --compare, --quick and what is "
        f"given beside it override it: {', '.join(recipe_names())} (default: none)",
    )
    add(
        "--compare",
        action="store_true",
        help="every method of the paper's table beside no distillation: --methods all --seeds 3 --preset corrected "
        "--out runs/compare, unless they are given (default: off)",
    )
    add(
        "--quick",
        action="store_true",
        help="shows in seconds that everything works, not what distillation does: --seeds 1 --epochs 4 "
        "--teacher-epochs 2, unless they are given (default: off)",
    )


def add_restart(group: argparse._ArgumentGroup) -> None:
    """What becomes of a run that is there already."""
    exclusive = group.add_mutually_exclusive_group().add_argument
    exclusive(
        "--resume",
        action="store_true",
        help="go on with the run in --out, which must have the same settings; starts one where there is none "
        "(default: off)",
    )
    exclusive(
        "--overwrite",
        action="store_true",
        help="start afresh; the results of the run in --out are deleted, trained teachers and other files are not "
        "(default: off)",
    )


def add_machine(group: argparse._ArgumentGroup) -> None:
    """What it runs on."""
    add = group.add_argument
    add(
        "--device",
        type=values.device,
        default="auto",
        metavar="NAME",
        help="auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU; under torchrun auto and cuda "
        "give each process a GPU of its own (default: %(default)s)",
    )
    add(
        "--threads",
        type=values.positive_int,
        default=1,
        metavar="N",
        help="CPU threads of each process. They wait for each other at every layer of networks this small, so that "
        "more than one can take many times longer where another program keeps a core busy; the numbers depend on it in "
        "their last digits (default: %(default)s thread)",
    )
