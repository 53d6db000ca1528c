"""A run on the CPU: every case's rivals found correct, then timed in turn, then each one's peak memory."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import judge, memory, objective_steps, operations
from benchmarks.cases import PRECISIONS, Case
from benchmarks.clock import interleaved, quantiles
from benchmarks.rivals import AUTOTUNED, COMPILED, CPP, EAGER, RELEASED, RIVALS, Rival, step_of
from benchmarks.workloads import CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2, Inputs

Entry = dict[str, Any]
SWEEP_SHARE = 0.5
"""The share of an entry's time that a point of a sweep gets, because there are many points."""
ON_CPU = (EAGER, RELEASED, COMPILED, AUTOTUNED, CPP)
OBJECTIVE_WORKLOADS = (CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2)
TRAININGS = (objective_steps.CIFAR, objective_steps.CUB_ON_CPU)


class Settings(NamedTuple):
    """How a run is made; every figure of it has them in common."""

    threads: int
    seconds: float
    """How long each rival's forward, and its forward + backward, is timed, about."""
    compiled: str
    """A regular expression: `torch.compile` takes part in the cases whose label it finds."""
    autotuned: str
    """The same for max-autotune."""
    measures_memory: bool = True

    def takes_part(self, rival: Rival, case: Case) -> bool:
        chosen = {COMPILED: self.compiled, AUTOTUNED: self.autotuned}.get(rival, "")
        return re.search(chosen, case.label) is not None


class Ready(NamedTuple):
    """A rival that may be timed."""

    loss: Callable[..., Tensor]
    figures: dict[str, Any]


def prepare_process(threads: int) -> None:
    """Threads, and a compiler's cache of this run's own, so that compile times are those of a first time."""
    torch.set_num_threads(threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")


def copy_rate(megabytes: int = 512) -> float:
    """Bytes per second, read and written, of copying a tensor many times."""
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    target = torch.empty_like(source)
    samples = interleaved({"copy": lambda: target.copy_(source)}, seconds=2.0)["copy"]
    return 2 * source.numel() / quantiles(samples)["median"]


def loss_entry(case: Case, settings: Settings, rate: float) -> Entry:
    """The loss alone: every rival's figures, or the reason why it has none."""
    torch._dynamo.reset()
    torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
    truth = judge.Truth.of(case)
    inputs = case.inputs()
    found = {rival.name: _prepared(rival, case, inputs, truth) for rival in ON_CPU if settings.takes_part(rival, case)}
    ready = {name: rival for name, rival in found.items() if isinstance(rival, Ready)}
    actions: dict[str, Callable[[], object]] = {}
    for name, rival in ready.items():
        actions[f"{name}/forward"] = partial(rival.loss, *inputs)
        actions[f"{name}/both"] = step_of(rival.loss, inputs)
    seconds = settings.seconds * (SWEEP_SHARE if case.sweep else 1.0)
    samples = interleaved(actions, seconds) if actions else {}
    for name, rival in ready.items():
        for part in ("forward", "both"):
            rival.figures[part] = quantiles(samples[f"{name}/{part}"])
    del inputs, actions
    if settings.measures_memory and case.sweep in ("", "classes"):
        for name, rival in ready.items():
            rival.figures.update(memory.measure(case, RIVALS[name], settings.threads)._asdict())
    return {
        "kind": "loss",
        "case": case.facts(),
        "label": case.label,
        "bytes": case.bytes_moved,
        "floor_seconds": case.bytes_moved / rate,
        "rivals": {name: rival.figures if isinstance(rival, Ready) else rival for name, rival in found.items()},
    }


def _prepared(rival: Rival, case: Case, inputs: Inputs, truth: judge.Truth) -> Ready | dict[str, Any]:
    """The rival ready to be timed, or why it cannot be. A backend of ours that is wrong gets no figure."""
    if reason := rival.why_not(case, "cpu"):
        return {"absent": reason}
    if not memory.fits(case, rival):
        return {"out_of_memory": {"needed": memory.needed(case, rival), "available": memory.available()}}
    figures, wrong = truth.verdict(rival)
    if wrong and rival.is_ours:
        return {"wrong": wrong}
    loss = rival.loss(**case.options)
    step = step_of(loss, inputs)
    start = time.perf_counter()
    step()
    figures["first_call_seconds"] = time.perf_counter() - start
    if not rival.compile_mode:
        figures["operations"], figures["host_waits"] = operations.count(step)
    return Ready(loss, figures)


def objective_entry(title: str, steps: dict[str, Any], settings: Settings) -> Entry:
    """Whole objectives on given maps."""
    counted = {name: operations.count(step) for name, step in steps.items()}
    samples = interleaved(steps, settings.seconds)
    return {
        "kind": "objective",
        "label": title,
        "rivals": {
            name: {"both": quantiles(samples[name]), "operations": counts.operations, "host_waits": counts.syncs}
            for name, counts in counted.items()
        },
    }


def training_entry(training: objective_steps.Training, settings: Settings) -> Entry:
    """Whole training steps, with the peak memory of each."""
    entrants = objective_steps.entrants()
    steps = training.steps({entrant.name: entrant.loss(training.classes) for entrant in entrants})
    samples = interleaved(steps, settings.seconds)
    del steps
    figures: dict[str, Any] = {name: {"both": quantiles(taken)} for name, taken in samples.items()}
    for entrant in entrants if settings.measures_memory else ():
        arguments = [training, entrant.method, entrant.way, settings.threads]
        figures[entrant.name] |= memory.measured_apart("benchmarks.objective_steps", arguments)
    return {"kind": "training", "label": f"Training step, {training.title}", "rivals": figures}


def entries(cases: list[Case], only: str, settings: Settings, rate: float) -> Iterator[Entry]:
    """The entries of a run, as they are measured: losses, then objectives and training steps that `only` finds."""
    for case in cases:
        if re.search(only, case.label):
            yield loss_entry(case, settings, rate)
    for workload in OBJECTIVE_WORKLOADS:
        title = f"Objective, {workload.title}, {workload.shapes}"
        if re.search(only, title):
            losses = {entrant.name: entrant.loss(workload.classes) for entrant in objective_steps.entrants()}
            yield objective_entry(title, objective_steps.objective_steps(workload, losses), settings)
    for training in TRAININGS:
        if re.search(only, f"Training step, {training.title}"):
            yield training_entry(training, settings)
