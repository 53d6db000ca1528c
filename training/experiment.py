"""The experiment: a teacher, then every method with every seed, saved after every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from icd_kernels import ICDLoss
from training import checkpoint, data, networks
from training.curves import write_curves
from training.data import Images
from training.errors import UsageError
from training.evaluation import Evaluation
from training.grams import write_grams
from training.losses import Distillation, cross_entropy
from training.networks import Network
from training.options import Options
from training.progress import Progress
from training.report import summarize, table
from training.settings import make_device, make_icd, resolved
from training.state import RESULT_FILES, Row, State, open_state
from training.teacher import Teacher
from training.trainer import Objective, Trainer

PROBES_PER_CLASS = 2


def run(options: Options) -> None:
    """Runs what is left to run, then writes and prints the results."""
    start = perf_counter()
    device = make_device(options)
    icd = make_icd(options, device)
    images = data.load(options.data, device)
    _check_train_images(options, images)
    settings = resolved(options, icd, device)
    state = open_state(options.out, settings, resume=options.resume, overwrite=options.overwrite)
    teacher = Teacher(images, settings, options.cache, device)
    with Progress(images, teacher, state) as progress:
        network = teacher.finish(progress.teacher_epoch)
        evaluation = Evaluation(images, network, settings["kd_temperature"], icd)
        experiment = Experiment(images, network, icd, evaluation, state)
        experiment.finish(progress.student_epoch)
    _write_results(state, images, evaluation(network)["test_top1"], icd)
    print(f"{teacher.path}: the trained teacher, for later runs\nDone in {perf_counter() - start:.0f} s.")


def _check_train_images(options: Options, images: Images) -> None:
    available = len(images.train_labels)
    if not images.classes <= options.train_images <= available:
        raise UsageError(
            f"--train-images must be from {images.classes} (one of each class) to {available} (all that "
            f"--data {options.data} has for training), got {options.train_images}"
        )


def _write_results(state: State, images: Images, teacher_top1: float, icd: ICDLoss) -> None:
    """Writes the table, the summary and the figures; prints the table, what it says, and where each file is."""
    folder = state.folder
    summary = summarize(state, teacher_top1)
    text = f"{table(summary)}\n\n{summary['conclusion']}\n"
    checkpoint.write(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    checkpoint.write(folder / "table.txt", text)
    write_curves(folder / "curves.png", state, teacher_top1)
    probe_images, probe_labels = probes(images)
    write_grams(folder / "grams.png", state.probes, probe_images.cpu(), probe_labels.cpu(), icd)
    print(f"\n{text}")
    for name, content in RESULT_FILES.items():
        print(f"{folder / name}: {content}")


class Experiment:
    """Every student, in the order of `plan`; `state` says how far it has come."""

    def __init__(self, images: Images, teacher: Network, icd: ICDLoss, evaluation: Evaluation, state: State) -> None:
        self.images = images
        self.teacher = teacher
        self.icd = icd
        self.evaluation = evaluation
        self.state = state
        self.settings = state.settings

    def finish(self, progress: Callable[[Row], None]) -> None:
        """Trains what is left; `progress` is told every row."""
        epochs = self.settings["epochs"]
        for index, (seed, method) in enumerate(plan(self.settings)):
            done = len(self.state.rows) - index * epochs  # epochs of this student that are in the rows
            if done < epochs:
                self._train(seed, method, max(done, 0), progress)

    def _train(self, seed: int, method: str, epochs_done: int, progress: Callable[[Row], None]) -> None:
        """One student from `epochs_done` to its end."""
        images, settings = self.images, self.settings
        rows = data.balanced_subset(images.train_labels, settings["train_images"], seed)
        own_images, own_labels = images.train_images[rows], images.train_labels[rows]
        student = networks.student(own_images.shape[-1], images.classes, seed).to(own_images.device)
        steps = settings["epochs"] * -(-len(own_labels) // settings["batch_size"])
        trainer = Trainer(student, settings["lr"], steps)
        objective = self._objective(method)
        if epochs_done > 0 and self.state.trainer is not None:
            trainer.restore(self.state.trainer)
        elif seed == settings["seed"]:
            self._probe("before", student)
        for epoch in range(epochs_done, settings["epochs"]):
            batches = data.epoch_batches(own_images, own_labels, settings["batch_size"], images.max_shift, seed, epoch)
            trained = trainer.train_epoch(batches, objective)
            row = make_row(method, seed, epoch + 1, trained, self.evaluation(student))
            last = epoch + 1 == settings["epochs"]
            if last and seed == settings["seed"]:
                self._probe(method, student)
            self.state.rows.append(row)
            self.state.trainer = None if last else trainer.state()
            self.state.save()
            progress(row)

    def _objective(self, method: str) -> Objective:
        if method == "none":
            return cross_entropy
        settings = self.settings
        kd = (self.teacher, settings["kd_weight"], settings["kd_temperature"])
        return Distillation(*kd) if method == "kd" else Distillation(*kd, self.icd, settings["icd_weight"])

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
    """A line of metrics.jsonl. Losses are before their weights, except train_loss; null: not in the objective."""
    terms = {f"train_{name}": trained.get(name) for name in ("loss", "ce", "kd", "icd")}
    timing = {"seconds_per_step": trained["seconds_per_step"]}
    return {"method": method, "seed": seed, "epoch": epoch, **terms, **tested, **timing}


def probes(images: Images) -> tuple[Tensor, Tensor]:
    """The first test images of every class, class by class, and their labels: (n, 1, H, W), (n,)."""
    first = [(images.test_labels == label).nonzero().squeeze(1)[:PROBES_PER_CLASS] for label in range(images.classes)]
    rows = torch.cat(first)
    return images.test_images[rows], images.test_labels[rows]
