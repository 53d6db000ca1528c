"""GPU benchmark: `python -m benchmarks.gpu` writes benchmarks/results/gpu.json (`make gpu` runs it).

Every workload x {float32, TF32, bfloat16} x {released spatial, paper class}: GPU time of forward and of forward +
backward, by replays of a CUDA graph whose inputs rotate through more memory than the L2 cache holds, and host time per
call. Beside it stand eager PyTorch, `torch.compile` (default and max-autotune), and the floor: every input read and
each gradient written once at the rate of a copy measured in the same run. A rival is timed only after its result was
found correct. Processes compile side by side; once all are ready they time their cases one after another, alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.judge import WrongResultError, check, exact_results
from benchmarks.machine import facts
from benchmarks.rivals import EAGER, Rival, Step
from benchmarks.workloads import FORMS, WORKLOADS, Inputs, Workload
from icd_kernels import icd_loss
from icd_kernels.backends import BACKENDS

RESULT = Path(__file__).parent / "results" / "gpu.json"
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}
"""Dtype of every tensor, and `torch.set_float32_matmul_precision`, for every rival alike."""

MANY_CLASSES = 4096
"""Above this a class Gram in float64 fits no GPU: such a workload is judged on one image and one region."""
JUDGED_IMAGES = 8
READY_SECONDS = 1200.0
"""How long the processes may take to compile."""


class MaxAutotune(NamedTuple):
    """`torch.compile(mode="max-autotune-no-cudagraphs")` of the reference: the graphs are ours, for every rival."""

    name: str = "compiled max-autotune"

    def loss(self, **options: Any) -> Callable[..., Tensor]:
        function = partial(icd_loss, backend="reference", **options)
        return torch.compile(
            lambda *tensors: function(*tensors), fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        )


class Case(NamedTuple):
    """What one figure is about."""

    workload: Workload
    precision: str
    form: str

    @property
    def label(self) -> str:
        return f"{self.workload.title}, {self.precision}, {self.form}"

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision][0]

    @property
    def options(self) -> dict[str, Any]:
        return FORMS[self.form]

    @property
    def bytes_moved(self) -> int:
        return bytes_moved(self.workload, self.dtype.itemsize)


class Prepared(NamedTuple):
    """A rival that was found correct and is compiled."""

    loss: Callable[..., Tensor]
    errors: dict[str, float]
    first_call_seconds: float


class PreparedCase(NamedTuple):
    """A case with the inputs that its rivals go round, and each rival, ready or with the reason why it cannot be."""

    case: Case
    inputs: list[Inputs]
    rivals: dict[str, Prepared | dict[str, Any]]


def own_rivals() -> list[Rival]:
    """The package's GPU backends that are usable here."""
    usable = [backend for backend in BACKENDS if backend.missing is None and "cuda" in (backend.device_types or ())]
    return [Rival(backend.name, backend.name) for backend in usable]


def rivals_of(case: Case, compiled: str, autotuned: str) -> list[Any]:
    """Ours, eager, and compiled PyTorch for cases whose label matches."""
    rivals: list[Any] = [*own_rivals(), EAGER]
    if re.search(compiled, case.label):
        rivals.append(Rival("compiled", "reference", is_compiled=True))
    if re.search(autotuned, case.label):
        rivals.append(MaxAutotune())
    return rivals


def bytes_moved(workload: Workload, element_size: int) -> int:
    """Every input read once and every gradient of the student written once, in bytes."""
    elements = 0
    for (channels, height, width), times in ((workload.teacher, 1), (workload.student, 2)):
        elements += times * (workload.batch * channels * height * width + workload.classes * (channels + 1))
    return elements * element_size


def rotations(set_bytes: int, cache_bytes: int) -> int:
    """Sets of inputs to go round so that none is still in the cache when its turn comes again."""
    return max(2, min(16, -(-2 * cache_bytes // set_bytes)))


def step_of(loss: Callable[..., Tensor], inputs: Inputs) -> Step:
    """Forward and backward of one training step."""
    leaves = inputs.leaves()

    def step() -> tuple[Tensor, ...]:
        value = loss(*inputs)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return step


def copy_rate(gigabytes: float = 1.0) -> float:
    """Bytes per second, read and written, of the best of many device copies."""
    source = torch.empty(int(gigabytes * 2**30), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = graph_seconds([lambda: (target.copy_(source),)], replays=20)
    return 2 * source.numel() / seconds["median"]


def graph_seconds(steps: Sequence[Step], replays: int) -> dict[str, float]:
    """GPU seconds of one step, median and quartiles over replays of a CUDA graph of all `steps`."""
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
    elapsed = [first.elapsed_time(second) * 1e-3 / len(steps) for first, second in pairwise(events)]
    low, median, high = statistics.quantiles(elapsed, n=4)
    return {"median": median, "low": low, "high": high}


def host_seconds(step: Step, calls: int = 25) -> float:
    """Median host seconds until a call returns, the GPU idle before each."""
    taken = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(taken)


def judged(rival: Any, case: Case) -> dict[str, float]:
    """The rival's errors against float64 on a few images; raises WrongResultError where they are too large."""
    options = dict(case.options)
    workload = case.workload.with_batch(min(case.workload.batch, JUDGED_IMAGES))
    if options["gram"] == "class" and workload.classes > MANY_CLASSES:
        workload, options["scales"] = workload.with_batch(1), (1,)
    inputs = workload.inputs(case.dtype, "cuda", seed=1)
    scales = options.get("scales", (1, 2, 4))
    rows = sum(workload.classes if options["gram"] == "class" else scale**2 for scale in scales)
    eager = step_of(EAGER.loss(**options), inputs)
    return check(step_of(rival.loss(**options), inputs)(), eager(), exact_results(inputs, **options), summed_rows=rows)


def rotating_inputs(case: Case) -> list[Inputs]:
    """Copies of two random sets of inputs."""
    count = rotations(case.bytes_moved, torch.cuda.get_device_properties(0).L2_cache_size)
    drawn = [case.workload.inputs(case.dtype, "cuda", seed=seed) for seed in range(2)]
    sets = [Inputs(*(part.detach().clone() for part in drawn[index % 2])) for index in range(count)]
    for each in sets:
        for leaf in each.leaves():
            leaf.requires_grad_()
    return sets


def prepared(rival: Any, case: Case, inputs: Inputs) -> Prepared | dict[str, Any]:
    """The rival ready to be timed, or why it cannot be."""
    try:
        errors = judged(rival, case)
        loss = rival.loss(**case.options)
        start = time.perf_counter()
        step_of(loss, inputs)()
        torch.cuda.synchronize()
        return Prepared(loss, errors, time.perf_counter() - start)
    except WrongResultError as error:
        return {"wrong": str(error)}
    except torch.cuda.OutOfMemoryError as error:
        return {"out_of_memory": str(error).split(". GPU")[0]}
    except Exception as error:  # of a rival's compiler, say: the others still count
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    finally:
        torch.cuda.empty_cache()


def measured(ready: Prepared, inputs: list[Inputs], replays: int) -> dict[str, Any]:
    """One rival's figures, the GPU to itself."""
    steps = [step_of(ready.loss, each) for each in inputs]
    forwards = [partial(_as_tuple, ready.loss, each) for each in inputs]
    steps[0]()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    steps[0]()
    peak = torch.cuda.max_memory_allocated() - before
    host = host_seconds(steps[0])
    both = graph_seconds(steps, replays)
    forward = graph_seconds(forwards, replays)
    return {
        "seconds": both["median"],
        "quartiles": [both["low"], both["high"]],
        "forward_seconds": forward["median"],
        "host_seconds": host,
        "peak_bytes": peak,
        "inputs": len(inputs),
        "first_call_seconds": ready.first_call_seconds,
        "errors": ready.errors,
    }


def work(cases: list[Case], rivals: list[list[Any]], replays: int, barrier: Any, turn: Any, results: Any) -> None:
    """One process: compiles everything for its cases, waits for the others, then times them in its turn."""
    everything = []
    for case, its_rivals in zip(cases, rivals, strict=True):
        torch.set_float32_matmul_precision(PRECISIONS[case.precision][1])
        inputs = rotating_inputs(case)
        ready = {rival.name: prepared(rival, case, inputs[0]) for rival in its_rivals}
        everything.append(PreparedCase(case, inputs, ready))
    barrier.wait(READY_SECONDS)
    with turn:
        for each in everything:
            torch.set_float32_matmul_precision(PRECISIONS[each.case.precision][1])
            figures = {}
            for name, rival in each.rivals.items():
                figures[name] = measured(rival, each.inputs, replays) if isinstance(rival, Prepared) else rival
                torch.cuda.empty_cache()
            results.put((each.case, figures))


def entries(cases: list[Case], options: argparse.Namespace, rate: float) -> Iterator[dict[str, Any]]:
    """The figures of every case, as they are measured."""
    context = multiprocessing.get_context("spawn")
    processes = min(options.processes, len(cases))
    barrier, turn, results = context.Barrier(processes), context.Lock(), context.Queue()
    started = []
    for index in range(processes):
        mine = cases[index::processes]
        rivals = [rivals_of(case, options.compiled, options.autotuned) for case in mine]
        arguments = (mine, rivals, options.replays, barrier, turn, results)
        started.append(context.Process(target=work, args=arguments))
        started[-1].start()
    for _ in cases:
        case, figures = results.get(timeout=READY_SECONDS)
        yield {
            "workload": case.workload.title,
            "precision": case.precision,
            "form": case.form,
            "bytes": case.bytes_moved,
            "floor_seconds": case.bytes_moved / rate,
            "rivals": figures,
        }
    for process in started:
        process.join()


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--only", default="", help="only cases whose label (see the output) this regular expression finds"
    )
    found.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: all")
    found.add_argument("--compiled", default="", help="torch.compile only where this one does")
    found.add_argument("--autotuned", default="", help="the same for max-autotune")
    found.add_argument("--processes", type=int, default=8, help="processes that compile (default: 8)")
    found.add_argument("--replays", type=int, default=20, help="graph replays per figure (default: 20)")
    found.add_argument("--output", type=Path, default=RESULT, help="where the figures go")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        parser().exit(1, "benchmarks.gpu: needs a CUDA GPU\n")
    rate = copy_rate()
    machine = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": _triton_version()}
    document: dict[str, Any] = {"machine": {**facts(torch.get_num_threads()), **machine}, "copy_rate": rate}
    document["figures"] = []
    cases = [Case(*of) for of in ((w, p, f) for w in WORKLOADS for p in chosen.precisions for f in FORMS)]
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries([case for case in cases if re.search(chosen.only, case.label)], chosen, rate):
        document["figures"].append(entry)
        print("\n".join(lines(entry)), flush=True)
        chosen.output.write_text(json.dumps(document, indent=1) + "\n")


def lines(entry: dict[str, Any]) -> list[str]:
    """An entry to read: times in microseconds and as a multiple of the floor."""
    floor = entry["floor_seconds"]
    text = [f"{entry['workload']}, {entry['precision']}, {entry['form']}: floor {floor * 1e6:.1f} us"]
    for name, figure in entry["rivals"].items():
        if "seconds" in figure:
            seconds, host = figure["seconds"], figure["host_seconds"]
            text.append(
                f"    {name}: {seconds * 1e6:.1f} us ({seconds / floor:.2f}x floor), forward "
                f"{figure['forward_seconds'] * 1e6:.1f} us, host {host * 1e6:.0f} us"
            )
        else:
            text += [f"    {name}: {reason.replace('_', ' ')}: {detail}" for reason, detail in figure.items()]
    return text


def _as_tuple(loss: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    return (loss(*inputs),)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


if __name__ == "__main__":
    main()
