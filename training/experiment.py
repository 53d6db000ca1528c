"""The experiment: a teacher, then every method with every seed, saved after every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from icd_kernels import ICDLoss
from training import checkpoint, data, networks, sources
from training.board import Board
from training.comparison import write_comparison
from training.curves import write_curves
from training.data import DataSet
from training.errors import UsageError
from training.evaluation import Evaluation
from training.grams import write_grams
from training.losses import CrossEntropy, Distillation, Loss
from training.networks import Network
from training.options import NO_DISTILLATION, Options
from training.progress import Progress
from training.report import markdown_table, summarize, table
from training.schedule import Schedule
from training.seeds import derived_seed
from training.settings import make_device, make_icd, make_student_objective, resolved
from training.state import RESULT_FILES, Row, State, open_state
from training.teacher import Teacher
from training.trainer import Optimization, Trainer

PROBES_PER_CLASS = 2
PROBED_CLASSES = 10
"""At most, so that the figure of many classes can be read."""


def run(options: Options) -> None:
    """Runs what is left to run, then writes and prints the results."""
    start = perf_counter()
    device = make_device(options)
    icd = make_icd(options, device)
    board = Board(options.out / "tensorboard" if options.tensorboard else None)
    images = sources.load(options, device)
    options.train_images = _train_images(options, images)
    settings = resolved(options, icd, device)
    state = open_state(options.out, settings, resume=options.resume, overwrite=options.overwrite)
    teacher = Teacher(images, settings, options.cache, device)
    with Progress(images, teacher, state) as progress, closing(board):
        network = teacher.finish(progress.teacher_epoch)
        evaluation = Evaluation(images, network, settings["kd_temperature"], icd)
        experiment = Experiment(images, network, icd, evaluation, state)
        experiment.finish(progress.student_epoch, board.add)
    _write_results(state, images, evaluation(network)["test_top1"], icd)
    print(f"{teacher.path}: the trained teacher, for later runs\nDone in {perf_counter() - start:.0f} s.")


def _train_images(options: Options, images: DataSet) -> int:
    """--train-images as a number."""
    available = len(images.train_labels)
    count = available if options.train_images is None else options.train_images
    if not images.classes <= count <= available:
        raise UsageError(
            f"--train-images must be from {images.classes} (one of each class) to {available} (all that "
            f"--data {options.data} has for training), got {count}"
        )
    return count


def _write_results(state: State, images: DataSet, teacher_top1: float, icd: ICDLoss) -> None:
    """Writes the table, the summary and the figures; prints the table, what it says, and where each file is."""
    folder = state.folder
    summary = summarize(state, teacher_top1)
    text = f"{table(summary)}\n\n{summary['conclusion']}\n"
    checkpoint.write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    checkpoint.write(folder / "table.txt", text)
    checkpoint.write(folder / "table.md", f"{markdown_table(summary)}\n\n{summary['conclusion']}\n")
    write_comparison(folder / "compare.png", summary)
    write_curves(folder / "curves.png", state, teacher_top1)
    probe_images, probe_labels = probes(images)
    write_grams(folder / "grams.png", state.probes, probe_images.cpu(), probe_labels.cpu(), icd)
    print(f"\n{text}")
    for name, content in RESULT_FILES.items():
        print(f"{folder / name}: {content}")


class Experiment:
    """Every student, in the order of `plan`; `state` says how far it has come."""

    def __init__(self, images: DataSet, teacher: Network, icd: ICDLoss, evaluation: Evaluation, state: State) -> None:
        self.images = images
        self.teacher = teacher
        self.icd = icd
        self.evaluation = evaluation
        self.state = state
        self.settings = state.settings

    def finish(self, *listeners: Callable[[Row], None]) -> None:
        """Trains what is left; the listeners are told every row."""
        epochs = self.settings["epochs"]
        for index, (seed, method) in enumerate(plan(self.settings)):
            done = len(self.state.rows) - index * epochs  # epochs of this student that are in the rows
            if done < epochs:
                self._train(seed, method, max(done, 0), listeners)

    def _train(self, seed: int, method: str, epochs_done: int, listeners: Iterable[Callable[[Row], None]]) -> None:
        """One student from `epochs_done` to its end."""
        images, settings = self.images, self.settings
        rows = data.balanced_subset(images.train_labels, settings["train_images"], seed)
        shape = images.channels, images.side, images.classes
        student = networks.make(settings["student"], "student", *shape, seed).to(rows.device)
        loss = self._loss(method, student, images.train_labels[rows], seed)
        optimization = Optimization(settings["lr"], *(settings[name] for name in ("weight_decay", "nesterov", "clip")))
        trainer = Trainer(student, loss, optimization, self._schedule(method))
        if epochs_done > 0 and self.state.trainer is not None:
            trainer.restore(self.state.trainer)
        elif seed == settings["seed"]:
            self._probe("before", student)
        for epoch in range(epochs_done, settings["epochs"]):
            torch.manual_seed(derived_seed("draws", seed, epoch))  # CRD's negatives, the same after a resumption
            batches = images.train_batches(rows, settings["batch_size"], seed, epoch)
            trained = trainer.train_epoch(batches, epoch + 1)
            row = make_row(method, seed, epoch + 1, trained, self.evaluation(student))
            last = epoch + 1 == settings["epochs"]
            if last and seed == settings["seed"]:
                self._probe(method, student)
            self.state.rows.append(row)
            self.state.trainer = None if last else trainer.state()
            self.state.save()
            for tell in listeners:
                tell(row)

    def _schedule(self, method: str) -> Schedule:
        settings = self.settings
        steps = self.images.steps_per_epoch(settings["train_images"], settings["batch_size"])
        warmup_epochs = settings["warmup_epochs"] if method == "ldrld" else 0
        return Schedule(settings["epochs"], steps, settings["schedule"], settings["milestones"], warmup_epochs)

    def _loss(self, method: str, student: Network, labels: Tensor, seed: int) -> Loss:
        if method == NO_DISTILLATION:
            return CrossEntropy()
        channels = student.map_channels, self.teacher.map_channels
        return Distillation(self.teacher, make_student_objective(method, self.settings, labels, channels, seed))

    def _probe(self, name: str, student: Network) -> None:
        """Keeps what the Gram figure shows."""
        images, _ = probes(self.images)
        self.state.probes["teacher"] = self.evaluation.regions(self.teacher, images).cpu()
        self.state.probes[name] = self.evaluation.regions(student, images).cpu()


def plan(settings: dict[str, Any]) -> list[tuple[int, str]]:
    """Every (seed, method), all methods of a seed before the next seed."""
    seeds = range(settings["seed"], settings["seed"] + settings["seeds"])
    return [(seed, method) for seed in seeds for method in settings["methods"]]


def make_row(method: str, seed: int, epoch: int, trained: dict[str, float], tested: dict[str, float]) -> Row:
    """A line of metrics.jsonl. "train_loss" is what is trained on; its terms, by their names, are before weights."""
    terms = {f"train_{name}": value for name, value in trained.items() if name != "seconds_per_step"}
    timing = {"seconds_per_step": trained["seconds_per_step"]}
    return {"method": method, "seed": seed, "epoch": epoch, **terms, **tested, **timing}


def probes(images: DataSet) -> tuple[Tensor, Tensor]:
    """The first test images of the first classes, class by class, and their labels: (n, C, H, W), (n,)."""
    classes = range(min(images.classes, PROBED_CLASSES))
    first = [(images.test_labels == label).nonzero().squeeze(1)[:PROBES_PER_CLASS] for label in classes]
    rows = torch.cat(first)
    return images.test_images_of(rows), images.test_labels[rows]
