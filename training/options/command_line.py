"""The command line as a whole: its help, its groups of options, and parsing."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from training.errors import UsageError
from training.options.data import add_data
from training.options.icd import add_grams, add_preset, add_scales
from training.options.namespace import Options
from training.options.objectives import add_objectives
from training.options.optimizer import add_epochs, add_optimizer
from training.options.run import add_machine, add_restart, add_results
from training.options.students import add_students
from training.options.teacher import add_teacher
from training.recipes import recipe_arguments

COMPARE = ("--methods", "all", "--seeds", "3", "--preset", "corrected", "--out", "runs/compare")
QUICK = ("--seeds", "1", "--epochs", "4", "--teacher-epochs", "2")

DESCRIPTION = """\
Distils a small network from a larger one on real images, by every method that is asked for: with no distillation, KD,
and KD with iCD, or with --compare all of the paper's table. The teacher is trained once on all training images and
kept; the student sees --train-images labelled ones, over several seeds. Prints a table, judges every method against
--baseline, and writes metrics.jsonl, summary.json, table.txt, table.md, compare.png, curves.png and grams.png to
--out."""

EPILOG = """\
Stopping and going on: Ctrl-C or a kill loses at most the epoch under way. The same command with --resume goes on and
ends with the numbers an unbroken run has (bit for bit on a CPU). Without --resume or --overwrite, a folder that
already holds a run is left alone, with an error.

Several GPUs or processes: torchrun --nproc-per-node N train_example.py ... trains every teacher and student on N GPUs
of this machine, or with --device cpu in N processes. Each process takes its share of every batch: --batch-size stays
the size of all shares together, and gradients and the losses in metrics.jsonl are the means over all of it. Three
things see no more than a share, so that the numbers depend on N: BatchNorm, as in any distributed training (the first
process's running statistics are kept), sp, and --gram sample. crd takes one process. A resumed run needs the same N,
and has an unbroken one's numbers bit for bit on a CPU with N of 2; with more, sums may be taken in another order."""

GROUPS: dict[str, tuple[Callable[[argparse._ArgumentGroup], None], ...]] = {
    "data and students": (add_data, add_students, add_epochs),
    "the students' optimizer": (add_optimizer,),
    "teacher": (add_teacher,),
    "methods other than iCD": (add_objectives,),
    "iCD: icd-weight·iCD is added to the objective of KD, DKD or NKD": (add_preset, add_grams, add_scales),
    "the run": (add_results, add_restart, add_machine),
}
"""What --help shows under one heading, in its order."""


def parse(arguments: list[str] | None = None) -> Options:
    """The options of a command line. A wrong one ends the program with its name, what it takes and what came."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.parse_args(given, namespace=Options())
    try:
        implied = () if options.recipe is None else recipe_arguments(options.recipe)
    except UsageError as error:
        parser.error(str(error))
    parser.of = f"--recipe {options.recipe}: "
    parser.parse_args([*implied], namespace=Options())  # what is wrong in it is said to be the recipe's
    parser.of = ""
    named = {argument.split("=")[0] for argument in (*implied, *given)}
    implied = (*implied, *(COMPARE if options.compare else ()), *(QUICK if options.quick else ()))
    parsed = parser.parse_args([*implied, *given], namespace=Options())  # of an option given twice the last counts
    parsed.given = frozenset(action.dest for action in parser._actions if named.intersection(action.option_strings))
    return parsed


class Parser(argparse.ArgumentParser):
    """Says where a wrong option stands, in `of`; prints one line, not the usage of sixty options."""

    of = ""

    def error(self, message: str) -> NoReturn:
        option = re.search(r"--[a-z-]+", message)
        self.exit(2, f"{self.prog}: error: {self.of}{message}\n{self._help_of(option[0] if option else '')}")

    def _help_of(self, option: str) -> str:
        for action in self._actions:
            if option in action.option_strings and action.help:
                text = action.help % {"default": action.default, "prog": self.prog}
                return textwrap.fill(f"{option}: {text}", 110, initial_indent="  ", subsequent_indent="    ") + "\n"
        return "  --help lists every option\n"


def make_parser() -> Parser:
    """The parser, by what the options concern."""
    parser = Parser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for title, additions in GROUPS.items():
        group = parser.add_argument_group(title)
        for add in additions:
            add(group)
    return parser
