"""Ten minutes on a GPU, what is worth most first: `make gpu`, or

    python -m benchmarks.ten_minutes [--seconds 600] [--output FILE]

Order: right results and a stress of the order between programs, the machine's constants, a trace of every task of some
forwards, one choice at a time of those that only a GPU can settle, then times beside eager PyTorch (called and as a
CUDA graph), `torch.compile` and a copy.
Every result is a line of JSON, written when it is known. The run stops itself at the given number of seconds and names
what it did not reach; whatever hangs is ended half a minute later. `make gpu-cache` fills the compile cache beforehand.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu, judge, machine, results
from benchmarks.cases import PRECISIONS, Case
from benchmarks.rivals import COMPILED, EAGER, RIVALS, step_of
from benchmarks.workloads import (
    CIFAR_RESNET32X4_MOBILENETV2,
    CIFAR_RESNET50_MOBILENETV2,
    CUB_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_SHUFFLENETV1,
    CUB_RESNET50_SHUFFLENETV1,
    CUB_VGG13_VGG8,
    FORMS,
)

Entry = dict[str, Any]
WORKLOADS = (
    CUB_RESNET32X4_MOBILENETV2,
    CUB_VGG13_VGG8,
    CIFAR_RESNET32X4_MOBILENETV2,
    CUB_RESNET50_SHUFFLENETV1,
    CUB_RESNET32X4_SHUFFLENETV1,
    CIFAR_RESNET50_MOBILENETV2,
)
CASES = tuple(
    Case(workload, form, precision) for precision in ("float32", "bfloat16") for form in FORMS for workload in WORKLOADS
)
TRACE_CASES = tuple(Case(workload, "spatial") for workload in WORKLOADS[:4])
KNOB_CASES = tuple(Case(workload, form) for workload in WORKLOADS[:3] for form in FORMS)
REPLAYS = 2000
"""Of the stress; each with fresh workspace full of NaN and nothing in the second-level cache."""
WARM_UP = 3
"""Forwards before the one that is traced."""
FLUSHED_BYTES = 256 << 20
KNOBS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("LAUNCHES", (3,)),
    ("PRODUCT_TILE", ((32, 64, 32), (64, 64, 16))),
    ("SPREAD", (132, 528)),
    ("STAGES", (2, 4)),
    ("REGISTERS", (128, 255)),
    ("WARPS", (8,)),
    ("GROUP_IMAGES", (4, 16)),
    ("MAX_SPLITS", (2,)),
)
"""Constants of configs.py and the values tried beside their own, one at a time."""
GRACE = 30.0


class Part(NamedTuple):
    """One part of the run: its name, and what yields its results as they come."""

    name: str
    entries: Callable[[], Iterator[Entry]]


def run(parts: list[Part], seconds: float, write: Callable[[Entry], None], now: Callable[[], float]) -> None:
    """Every part in its order until the time is over; a part that fails is named, and the next one begins."""
    start = now()
    for part in parts:
        if now() - start >= seconds:
            write({"part": part.name, "not_reached": True})
            continue
        try:
            for entry in part.entries():
                write({"part": part.name, "at": round(now() - start, 1), **entry})
                if now() - start >= seconds:
                    write({"part": part.name, "cut_short": True})
                    break
        except Exception as error:  # of one kernel, say: the other parts still count
            write({"part": part.name, "failed": f"{type(error).__name__}: {error}"[:1000]})


def correctness() -> Iterator[Entry]:
    """Every case against the float64 reference, by the rule of :mod:`benchmarks.judge`."""
    for case in CASES:
        with _precision(case):
            figures, wrong = judge.Truth.of(case, "cuda").verdict(RIVALS["triton"])
        yield {"case": case.label, **figures, "wrong": wrong}


def stress(replays: int = REPLAYS) -> Iterator[Entry]:
    """Replays of a captured step that must be equal to the bit, whatever memory and cache hold."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    for form in FORMS:
        case = Case(CUB_RESNET32X4_MOBILENETV2, form)
        step = step_of(RIVALS["triton"].loss(**case.options), case.inputs("cuda"))
        graph, outputs = _captured(step)
        graph.replay()
        first = [output.clone() for output in outputs]
        differing = torch.zeros((), dtype=torch.int64, device="cuda")
        for _ in range(replays):
            flushed.zero_()
            graph.replay()
            for output, expected in zip(outputs, first, strict=True):
                differing += (output != expected).any() | output.isnan().any()
        yield {"case": case.label, "replays": replays, "differing": int(differing)}


def _captured(step: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[Any, tuple[torch.Tensor, ...]]:
    """A graph of one step, in which PyTorch fills every fresh tensor with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()
    finally:
        torch.use_deterministic_algorithms(before)
    return graph, outputs


def constants() -> Iterator[Entry]:
    """What a model of the launches needs to know of the machine."""
    from benchmarks import gpu_constants

    yield {"copy_bytes_per_second": gpu.copy_rate()}
    yield from gpu_constants.measured()


def trace() -> Iterator[Entry]:
    """When the tasks of a forward ran, in short and each."""
    from benchmarks import gpu_trace

    for case in TRACE_CASES:
        loss, inputs = RIVALS["triton"].loss(**case.options), case.inputs("cuda")
        with gpu_trace.traced() as traces:
            for _ in range(WARM_UP + 1):
                loss(*inputs)
        torch.cuda.synchronize()
        yield {"case": case.label, "microseconds": traces[-1].summary(), "tasks": traces[-1].rows()}


def knobs() -> Iterator[Entry]:
    """Times with one constant of configs.py changed, beside those with none; `wrong` says what is not right with it."""
    for case in KNOB_CASES:
        truth = judge.Truth.of(case, "cuda")
        yield {"case": case.label, "knob": "none", **_timed(case)}
        for name, value in settings():
            with changed(name, value):
                _, wrong = truth.verdict(RIVALS["triton"])
                yield {"case": case.label, "knob": name, "value": value, "wrong": wrong, **_timed(case)}


def settings() -> Iterator[tuple[str, Any]]:
    """Every knob with every value that is tried."""
    for name, values in KNOBS:
        for value in values:
            yield name, value


@contextmanager
def changed(name: str, value: Any) -> Iterator[None]:
    """One constant of configs.py has another value, and no plan remembers its own."""
    from icd_kernels.backends.triton import configs, plan

    before = getattr(configs, name)
    setattr(configs, name, value)
    plan.forget()
    try:
        yield
    finally:
        setattr(configs, name, before)
        plan.forget()


def _timed(case: Case) -> Entry:
    """GPU seconds of forward and backward, by graph replays over rotating inputs."""
    inputs = gpu.rotating_inputs(case)
    loss = RIVALS["triton"].loss(**case.options)
    steps = [step_of(loss, each) for each in inputs]
    forwards = [partial(_forward, loss, each) for each in inputs]
    return {"both": gpu.graph_seconds(steps, 20), "forward": gpu.graph_seconds(forwards, 20)}


def _forward(loss: Callable[..., torch.Tensor], inputs: Any) -> tuple[torch.Tensor, ...]:
    return (loss(*inputs),)


def table(rate: Callable[[], float] = gpu.copy_rate) -> Iterator[Entry]:
    """Every case beside its rivals and the floor, in one process, one after another."""
    copied = rate()
    for case in CASES:
        with _precision(case):
            inputs, truth = gpu.rotating_inputs(case), judge.Truth.of(case, "cuda")
            figures: Entry = {}
            for rival in (RIVALS["triton"], EAGER, COMPILED):
                ready = gpu.prepared(rival, case, inputs[0], truth)
                if isinstance(ready, gpu.Prepared):
                    ready = gpu.measured(ready, inputs, 20, is_graphable=True)
                figures[rival.name] = ready
        yield {"case": case.label, "floor_seconds": case.bytes_moved / copied, "rivals": figures}


@contextmanager
def _precision(case: Case) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


PARTS = [
    Part("correctness", correctness),
    Part("stress", stress),
    Part("constants", constants),
    Part("trace", trace),
    Part("knobs", knobs),
    Part("table", table),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="when to stop (default: 600)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-DEVICE-COMMIT.jsonl")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU; nothing was run", file=sys.stderr)
        return 1
    faulthandler.dump_traceback_later(options.seconds + GRACE, exit=True)
    facts = {**machine.facts(torch.get_num_threads()), **gpu.facts()}
    path = options.output or results.path_for(facts).with_suffix(".jsonl")
    with path.open("w", encoding="utf-8") as file:

        def write(entry: Entry) -> None:
            line = json.dumps(entry, default=str)
            print(line[:300], flush=True)
            file.write(line + "\n")
            file.flush()

        write({"machine": facts, "seconds": options.seconds})
        run(PARTS, options.seconds, write, time.monotonic)
    faulthandler.cancel_dump_traceback_later()
    print(f"==> {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
