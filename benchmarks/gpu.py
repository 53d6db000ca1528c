"""A run on a GPU: every case's rivals found correct and compiled, side by side, then timed one after another, alone.

Two device times: by replays of a CUDA graph whose inputs rotate through more memory than the L2 cache holds ("both",
"forward": no host in it; for eager PyTorch this is the CUDA-graphed rival), and of plain calls queued back to back
("called": what a script without graphs sees). Beside them the host time until a call returns, the kernels a step
launches, the allocator's peak, and the floor: every input read and each gradient written once at the rate of a copy
measured in the same run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import judge, objective_steps
from benchmarks.cases import PRECISIONS, Case
from benchmarks.clock import Quantiles, interleaved, quantiles
from benchmarks.rivals import AUTOTUNED, COMPILED, EAGER, RELEASED, RIVALS, Rival, Step, step_of
from benchmarks.workloads import CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2, Inputs

OURS = (RIVALS["triton"], RIVALS["cuda"])
READY_SECONDS = 1200.0
"""How long the processes may take to compile."""
OBJECTIVE_WORKLOADS = (CIFAR_RESNET32X4_MOBILENETV2, CUB_RESNET32X4_MOBILENETV2)
TRAININGS = (objective_steps.CIFAR, objective_steps.CUB_ON_GPU)


class Prepared(NamedTuple):
    """A rival that was found correct and is compiled."""

    loss: Callable[..., Tensor]
    figures: dict[str, Any]


class PreparedCase(NamedTuple):
    """A case with the inputs that its rivals go round, and each rival, ready or with the reason why it cannot be."""

    case: Case
    inputs: list[Inputs]
    rivals: dict[str, Prepared | dict[str, Any]]


def facts() -> dict[str, Any]:
    """What decides a GPU's figures, beside `benchmarks.machine.facts`."""
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": _triton_version()}


def rivals_of(case: Case, compiled: str, autotuned: str) -> list[Rival]:
    """Ours, eager, the released formulation, and compiled PyTorch for cases whose label matches."""
    found = [*OURS, EAGER, RELEASED]
    found += [COMPILED] if re.search(compiled, case.label) else []
    found += [AUTOTUNED] if re.search(autotuned, case.label) else []
    return found


def rotations(set_bytes: int, cache_bytes: int) -> int:
    """Sets of inputs to go round so that none is still in the cache when its turn comes again."""
    return max(2, min(16, -(-2 * cache_bytes // set_bytes)))


def copy_rate(gigabytes: float = 1.0) -> float:
    """Bytes per second, read and written, of the median of many device copies."""
    source = torch.empty(int(gigabytes * 2**30), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / graph_seconds([lambda: (target.copy_(source),)], replays=20)["median"]


def graph_seconds(steps: Sequence[Step], replays: int) -> Quantiles:
    """GPU seconds of one step over replays of a CUDA graph of all `steps`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in (steps[0], *steps):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    graph.replay()
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    torch.cuda.synchronize()
    return quantiles([first.elapsed_time(second) * 1e-3 / len(steps) for first, second in pairwise(events)])


def called_seconds(steps: Sequence[Step], rounds: int = 10) -> Quantiles:
    """Seconds of one step of plain calls queued back to back, until the GPU has finished them."""
    samples = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for step in steps:
            step()
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / len(steps))
    return quantiles(samples)


def host_seconds(step: Step, calls: int = 25) -> float:
    """Median host seconds until a call returns, the GPU idle before each."""
    taken = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return quantiles(taken)["median"]


def launches(step: Step) -> int:
    """Kernels, copies and fills that one step puts on the GPU."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in trace.events())


def rotating_inputs(case: Case) -> list[Inputs]:
    """Copies of two random sets of inputs."""
    count = rotations(case.bytes_moved, torch.cuda.get_device_properties(0).L2_cache_size)
    drawn = [case.inputs("cuda", seed=seed) for seed in range(2)]
    sets = [Inputs(*(part.detach().clone() for part in drawn[index % 2])) for index in range(count)]
    for each in sets:
        for leaf in each.leaves():
            leaf.requires_grad_()
    return sets


def prepared(rival: Rival, case: Case, inputs: Inputs, truth: judge.Truth) -> Prepared | dict[str, Any]:
    """The rival ready to be timed, or why it cannot be."""
    if reason := rival.why_not(case, "cuda"):
        return {"absent": reason}
    try:
        figures, wrong = truth.verdict(rival)
        if wrong and rival.is_ours:
            return {"wrong": wrong}
        loss = rival.loss(**case.options)
        start = time.perf_counter()
        step_of(loss, inputs)()
        torch.cuda.synchronize()
        return Prepared(loss, {**figures, "first_call_seconds": time.perf_counter() - start})
    except torch.cuda.OutOfMemoryError as error:
        return {"out_of_memory": str(error).split(". GPU")[0]}
    except Exception as error:  # of a rival's compiler, say: the others still count
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    finally:
        torch.cuda.empty_cache()


def measured(ready: Prepared, inputs: list[Inputs], replays: int, *, is_graphable: bool) -> dict[str, Any]:
    """One rival's figures, the GPU to itself."""
    steps = [step_of(ready.loss, each) for each in inputs]
    forwards = [partial(_as_tuple, ready.loss, each) for each in inputs]
    steps[0]()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = steps[0]()
    torch.cuda.synchronize()
    figures = {
        **ready.figures,
        "extra_peak": torch.cuda.max_memory_allocated() - before,
        "gradients": sum(gradient.nbytes for gradient in results[1:]),
        "host_seconds": host_seconds(steps[0]),
        "called": called_seconds(steps),
        "launches": launches(steps[0]),
        "inputs": len(inputs),
    }
    if is_graphable:
        figures |= {"both": graph_seconds(steps, replays), "forward": graph_seconds(forwards, replays)}
    return figures


def work(cases: list[Case], rivals: list[list[Rival]], replays: int, barrier: Any, turn: Any, queue: Any) -> None:
    """One process: compiles everything for its cases, waits for the others, then times them in its turn."""
    everything = []
    for case, its_rivals in zip(cases, rivals, strict=True):
        torch._dynamo.reset()
        torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
        inputs, truth = rotating_inputs(case), judge.Truth.of(case, "cuda")
        ready = {rival.name: prepared(rival, case, inputs[0], truth) for rival in its_rivals}
        everything.append(PreparedCase(case, inputs, ready))
    barrier.wait(READY_SECONDS)
    with turn:
        for each in everything:
            torch.set_float32_matmul_precision(PRECISIONS[each.case.precision][1])
            figures = {}
            for name, rival in each.rivals.items():
                is_graphable = not RIVALS[name].is_released  # it reads values on the host
                figures[name] = (
                    measured(rival, each.inputs, replays, is_graphable=is_graphable)
                    if isinstance(rival, Prepared)
                    else rival
                )
                torch.cuda.empty_cache()
            queue.put((each.case, figures))


def entries(cases: list[Case], options: argparse.Namespace, rate: float) -> Iterator[dict[str, Any]]:
    """The figures of every case, as they are measured, then those of objectives and training steps."""
    if cases:
        yield from loss_entries(cases, options, rate)
    for title, steps in _whole_steps():
        if re.search(options.only, title):
            yield {"kind": title.split(",")[0].split()[0].lower(), "label": title, "rivals": _stepped(steps())}


def loss_entries(cases: list[Case], options: argparse.Namespace, rate: float) -> Iterator[dict[str, Any]]:
    """The loss alone: processes compile side by side and time in turn."""
    context = multiprocessing.get_context("spawn")
    processes = min(options.processes, len(cases))
    barrier, turn, queue = context.Barrier(processes), context.Lock(), context.Queue()
    started = []
    for index in range(processes):
        mine = cases[index::processes]
        rivals = [rivals_of(case, options.compiled, options.autotuned) for case in mine]
        started.append(context.Process(target=work, args=(mine, rivals, options.replays, barrier, turn, queue)))
        started[-1].start()
    for _ in cases:
        case, figures = queue.get(timeout=READY_SECONDS)
        yield {
            "kind": "loss",
            "case": case.facts(),
            "label": case.label,
            "bytes": case.bytes_moved,
            "floor_seconds": case.bytes_moved / rate,
            "rivals": figures,
        }
    for process in started:
        process.join()


def _whole_steps() -> Iterator[tuple[str, Callable[[], dict[str, Callable[[], object]]]]]:
    """Titles, and what makes the steps of every rival."""
    entrants = objective_steps.entrants()
    for workload in OBJECTIVE_WORKLOADS:
        losses = {entrant.name: entrant.loss(workload.classes) for entrant in entrants}
        yield (
            f"Objective, {workload.title}, {workload.shapes}",
            partial(objective_steps.objective_steps, workload, losses, "cuda"),
        )
    for training in TRAININGS:
        losses = {entrant.name: entrant.loss(training.classes) for entrant in entrants}
        yield f"Training step, {training.title}", partial(training.steps, losses, "cuda")


def _stepped(steps: dict[str, Callable[[], object]]) -> dict[str, Any]:
    """Seconds until the GPU has finished a step, the host's part included, and the allocator's peak."""
    figures: dict[str, Any] = {}
    for name, taken in interleaved(steps, seconds=2.0, wait=torch.cuda.synchronize).items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[name]()
        torch.cuda.synchronize()
        figures[name] = {"both": quantiles(taken), "extra_peak": torch.cuda.max_memory_allocated() - before}
    return figures


def _as_tuple(loss: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    return (loss(*inputs),)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)
