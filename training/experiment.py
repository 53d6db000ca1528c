"""The experiment: a teacher, then every method with every seed, saved after every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import cached_property, partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from icd_kernels import ICDLoss
from training import checkpoint, data, figures, networks, sources, students
from training.board import Board
from training.cached_teacher import CachedTeacher
from training.data import DataSet
from training.errors import UsageError
from training.evaluation import Evaluation
from training.given_teacher import GivenTeacher
from training.last_words import last_words
from training.losses import CrossEntropy, Distillation, Loss
from training.networks import Network
from training.options import NO_DISTILLATION, Options
from training.processes import ALONE, LEAST_SHARE, Processes
from training.progress import Progress
from training.report import Summary, markdown_table, summarize, table
from training.schedule import Schedule
from training.seeds import derived_seed
from training.settings import make_device, make_icd, make_student_objective, resolved
from training.state import RESULT_FILES, Row, State, open_state
from training.teacher import BATCH_SIZE as TEACHER_BATCH_SIZE
from training.teacher import Teacher
from training.teacher_network import make_teacher, needs_map
from training.trainer import Optimization, Trainer
from training.without_effect import options_without_effect

PROBES_PER_CLASS = 2
PROBED_CLASSES = 10
"""At most, so that the figure of many classes can be read."""


def run(options: Options, processes: Processes = ALONE) -> None:
    """Runs what is left to run, then writes and prints the results."""
    start = perf_counter()
    device = make_device(options, processes)
    if processes.is_first:
        print(f"Reading {options.data}; then a step of each method, before anything is trained.", flush=True)
    with processes.connected(device):
        images, icd, board, settings, given = processes.after_first(lambda: _prepare(options, device, processes))
        opening = partial(open_state, options.out, settings, resume=options.resume, overwrite=options.overwrite)
        state = processes.from_first(opening)
        if processes.is_first:
            for note in (*images.notes, *figures.notes(), *options_without_effect(options, settings)):
                print(f"note: {note}")
        teacher = given or Teacher(images, settings, options.cache, device, processes)
        with Progress(images, teacher, state, is_shown=processes.is_first) as progress, closing(board):
            network = teacher.finish(progress.teacher_epoch)
            if settings["compile"]:
                network.compile_in_place()
            outputs = None
            if settings["cache_teacher"]:
                keep = partial(CachedTeacher.load_or_run, network, images, settings, teacher.path)
                outputs = processes.after_first(keep)
            experiment = Experiment(images, network, icd, state, processes, outputs)
            experiment.finish(progress.student_epoch, board.add)
        processes.from_first(experiment.write_results)
    if processes.is_first:
        print(f"{teacher.source}\nDone in {perf_counter() - start:.0f} s. {last_words(experiment.summary)}")


def _prepare(
    options: Options, device: torch.device, processes: Processes
) -> tuple[DataSet, ICDLoss, Board, dict[str, Any], GivenTeacher | None]:
    """All that a wrong option may be found with, before anything is written; the settings, and a teacher's weights."""
    icd = make_icd(options, device)
    board = Board(options.out / "tensorboard" if options.tensorboard else None)
    images = sources.load(options, device)
    options.train_images = _train_images(options, images)
    settings = resolved(options, icd, images, device, processes.world_size)
    if processes.world_size > 1:
        _check_shares(images, settings)
    file = options.teacher_checkpoint
    given = None if file is None else GivenTeacher(images, settings, file, options.cache, device)
    rehearse(images, settings, device)
    return images, icd, board, settings, given


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


def _check_shares(images: DataSet, settings: dict[str, Any]) -> None:
    """Refuses batches of which a process would get too little."""
    needed = LEAST_SHARE * settings["processes"]
    student = f"--batch-size {settings['batch_size']}", settings["train_images"], settings["batch_size"]
    teacher = f"the teacher's batch size, always {TEACHER_BATCH_SIZE}", len(images.train_labels), TEACHER_BATCH_SIZE
    for name, count, batch_size in (student, teacher):
        last = min(batch_size, count - (images.steps_per_epoch(count, batch_size) - 1) * batch_size)
        if last < needed:
            raise UsageError(
                f"{name}: {settings['processes']} processes need {needed} images in every batch, {LEAST_SHARE} each, "
                f"and the last batch of {count} has {last}: start fewer processes, or change --batch-size or "
                "--train-images where it is the students'"
            )


def _write_results(state: State, images: DataSet, teacher_top1: float, icd: ICDLoss) -> Summary:
    """Writes the table, the summary and the figures; prints the table, what it says, and where each file is."""
    folder = state.folder
    summary = summarize(state, teacher_top1)
    text = f"{table(summary)}\n\n{summary['conclusion']}\n"
    checkpoint.write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    checkpoint.write(folder / "table.txt", text)
    checkpoint.write(folder / "table.md", f"{markdown_table(summary)}\n\n{summary['conclusion']}\n")
    drawn = figures.write_figures(state, summary, images, probes, icd)
    print(f"\n{text}")
    for name, content in RESULT_FILES.items():
        if name in drawn or not name.endswith(".png"):
            print(f"{folder / name}: {content}")
    return summary


class Experiment:
    """Every student, in the order of `plan`; `state` says how far it has come.

    Of several processes all train, and the first alone evaluates and writes.
    """

    def __init__(
        self,
        images: DataSet,
        teacher: Network,
        icd: ICDLoss,
        state: State,
        processes: Processes = ALONE,
        outputs: CachedTeacher | None = None,
    ) -> None:
        """`outputs`: the teacher's of every training image, where they are kept; students see these unchanged."""
        self.images = images if outputs is None else images.unchanged()
        self.outputs = outputs
        self.teacher = teacher
        self.icd = icd
        self.state = state
        self.settings = state.settings
        self.processes = processes
        self.summary: Summary | None = None

    @property
    def made(self) -> dict[str, Any]:
        """What a student's network is made from, but for its seed."""
        images = self.images
        return {
            "name": self.settings["student"],
            "channels": images.channels,
            "side": images.side,
            "classes": images.classes,
            "needs_map": needs_map(self.settings),
        }

    @cached_property
    def evaluation(self) -> Evaluation:
        """Made when it is first asked for, as it runs the teacher on all test images."""
        return Evaluation(self.images, self.teacher, self.settings["kd_temperature"], self.icd)

    def finish(self, *listeners: Callable[[Row], None]) -> None:
        """Trains what is left; the listeners, in the first process, are told every row."""
        epochs = self.settings["epochs"]
        for index, (seed, method) in enumerate(plan(self.settings)):
            done = len(self.state.rows) - index * epochs  # epochs of this student that are in the rows
            if done < epochs:
                self._train(seed, method, max(done, 0), listeners)

    def _train(self, seed: int, method: str, epochs_done: int, listeners: Iterable[Callable[[Row], None]]) -> None:
        """One student from `epochs_done` to its end."""
        images, settings = self.images, self.settings
        rows = data.balanced_subset(images.train_labels, settings["train_images"], seed)
        student = networks.make(role="student", seed=seed, **self.made).to(rows.device)
        if settings["compile"]:
            student.compile_in_place()
        loss = self._loss(method, student, rows, seed)
        optimization = Optimization(
            settings["lr"], *(settings[name] for name in ("weight_decay", "nesterov", "clip", "amp"))
        )
        steps = images.steps_per_epoch(len(rows), settings["batch_size"])
        trainer = Trainer(student, loss, optimization, self._schedule(method, steps), self.processes)
        weights = self.processes.weights(len(rows), settings["batch_size"], steps)
        if epochs_done > 0 and self.state.trainer is not None:
            trainer.restore(self.state.trainer)
        elif seed == settings["seed"]:
            self.processes.from_first(lambda: self._probe("before", student))
        for epoch in range(epochs_done, settings["epochs"]):
            draws = derived_seed("draws", seed, epoch) + self.processes.rank
            torch.manual_seed(draws)  # of CRD's negatives and a network's dropout, the same after a resumption
            batches = images.train_batches(rows, settings["batch_size"], seed, epoch, self.processes.share)
            trained = trainer.train_epoch(batches, epoch + 1, weights)
            keep = partial(self._keep, trainer, method, seed, epoch + 1, trained, listeners)
            row = self.processes.from_first(keep)
            if not self.processes.is_first:
                self.state.rows.append(row)

    def _keep(
        self,
        trainer: Trainer,
        method: str,
        seed: int,
        epoch: int,
        trained: dict[str, float],
        listeners: Iterable[Callable[[Row], None]],
    ) -> Row:
        """Evaluates and saves a student that has finished an epoch."""
        student = trainer.network
        row = make_row(method, seed, epoch, trained, self.evaluation(student))
        students.keep(self.state, student, row, self.made)
        last = epoch == self.settings["epochs"]
        if last and seed == self.settings["seed"]:
            self._probe(method, student)
        self.state.rows.append(row)
        self.state.trainer = None if last else trainer.state()
        self.state.save()
        for tell in listeners:
            tell(row)
        return row

    def write_results(self) -> None:
        """Writes and prints what all students have come to."""
        self.summary = _write_results(self.state, self.images, self.evaluation(self.teacher)["test_top1"], self.icd)
        seed, method = plan(self.settings)[-1]
        best = students.path_of(self.state.folder, method, seed, students.BEST)
        print(f"{best.parent}: every student's best and last weights; one of them by")
        print(f"  {students.how_to_load(best, self.made)}")

    def _schedule(self, method: str, steps: int) -> Schedule:
        settings = self.settings
        warmup_epochs = settings["warmup_epochs"] if method == "ldrld" else 0
        return Schedule(settings["epochs"], steps, settings["schedule"], settings["milestones"], warmup_epochs)

    def _loss(self, method: str, student: Network, rows: Tensor, seed: int) -> Loss:
        outputs = None if self.outputs is None else self.outputs.at(rows)
        labels = self.images.train_labels[rows]
        return make_loss(method, self.settings, student, self.teacher, labels, seed, outputs)

    def _probe(self, name: str, student: Network) -> None:
        """Keeps what the Gram figure shows, where both networks have local logits."""
        images, _ = probes(self.images)
        regions = (self.evaluation.regions(network, images) for network in (self.teacher, student))
        for key, found in zip(("teacher", name), regions, strict=True):
            if found is None:
                return
            self.state.probes[key] = found.cpu()


def make_loss(
    method: str,
    settings: dict[str, Any],
    student: Network,
    teacher: Network,
    labels: Tensor,
    seed: int,
    outputs: CachedTeacher | None = None,
) -> Loss:
    """What a student is trained on.

    Args:
        method: one of --methods.
        settings: of the run.
        student, teacher: the networks.
        labels: of the student's images, (n,).
        seed: the student's.
        outputs: what the teacher said of these images, where that is kept.
    """
    if method == NO_DISTILLATION:
        return CrossEntropy()
    channels = student.map_channels, teacher.map_channels
    objective = make_student_objective(method, settings, labels, channels, seed)
    return Distillation(outputs if outputs is not None else (lambda batch: teacher(batch.images)), objective)


def rehearse(images: DataSet, settings: dict[str, Any], device: torch.device) -> None:
    """One step of every method on a real batch, with networks that nothing has trained, before the teacher's hours.

    Raises:
        UsageError: a method's step fails; its name, and what was said.
    """
    rows = data.balanced_subset(images.train_labels, settings["train_images"], settings["seed"])
    shape = images.channels, images.side, images.classes
    with torch.random.fork_rng():
        teacher = make_teacher(images, settings).to(device).eval().requires_grad_(False)
        batch = next(iter(images.train_batches(rows, settings["batch_size"], settings["seed"], 0)))
        for method in settings["methods"]:
            student = networks.make(settings["student"], "student", *shape, seed=0, needs_map=needs_map(settings)).to(
                device
            )
            try:
                loss = make_loss(method, settings, student, teacher, images.train_labels[rows], settings["seed"])
                loss(student, batch, 1)["loss"].backward()
            except (ValueError, TypeError, RuntimeError) as error:
                raise UsageError(
                    f"--methods {method}, --student {settings['student']}, --teacher {settings['teacher']}: {error}"
                ) from error


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
