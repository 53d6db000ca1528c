"""GPU benchmark: `python -m benchmarks.gpu` writes benchmarks/results/gpu.json (`make gpu` runs it).

Every workload x {float32, TF32, bfloat16} x {released spatial, paper class}: GPU time of forward + backward, by replays
of a CUDA graph whose inputs rotate through more memory than the L2 cache holds, and host time per call. Beside it stand
eager PyTorch, `torch.compile` (default and max-autotune), and the floor: every input read and each gradient written
once at the rate of a copy measured in the same run. A rival is timed only after its result was found correct.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
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


class MaxAutotune(NamedTuple):
    """`torch.compile(mode="max-autotune-no-cudagraphs")` of the reference: the graphs are ours, for every rival."""

    name: str = "compiled max-autotune"

    def loss(self, **options: Any) -> Callable[..., Tensor]:
        function = partial(icd_loss, backend="reference", **options)
        return torch.compile(
            lambda *tensors: function(*tensors), fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
        )


def gpu_rivals() -> list[Any]:
    """The package's GPU backends that are usable here, then eager and compiled PyTorch."""
    usable = [
        backend.name for backend in BACKENDS if backend.missing is None and "cuda" in (backend.device_types or ())
    ]
    own = [Rival(name, name) for name in usable]
    return [*own, EAGER, Rival("compiled", "reference", is_compiled=True), MaxAutotune()]


def bytes_moved(workload: Workload, element_size: int) -> int:
    """Every input read once and every gradient of the student written once, in bytes."""
    elements = 0
    for (channels, height, width), times in ((workload.teacher, 1), (workload.student, 2)):
        elements += times * (workload.batch * channels * height * width + workload.classes * (channels + 1))
    return elements * element_size


def rotations(set_bytes: int, cache_bytes: int) -> int:
    """Sets of inputs to go round so that none is still in the cache when its turn comes again."""
    return max(2, min(64, -(-4 * cache_bytes // set_bytes)))


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
    return 2 * source.numel() / seconds


def graph_seconds(steps: Sequence[Step], replays: int) -> float:
    """GPU seconds of one step: the median over replays of a CUDA graph of all `steps`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in steps:
            for _ in range(3):
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
    elapsed = [first.elapsed_time(second) for first, second in pairwise(events)]
    return statistics.median(elapsed) * 1e-3 / len(steps)


def host_seconds(step: Step, calls: int = 50) -> float:
    """Median host seconds until a call returns, the GPU idle before each."""
    taken = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(taken)


def judged(rival: Any, workload: Workload, dtype: torch.dtype, options: dict[str, Any]) -> dict[str, float]:
    """The rival's errors against float64; raises WrongResultError where they are too large."""
    options = dict(options)
    if options["gram"] == "class" and workload.classes > MANY_CLASSES:
        workload, options["scales"] = workload.with_batch(1), (1,)
    inputs = workload.inputs(dtype, "cuda", seed=1)
    scales = options.get("scales", (1, 2, 4))
    rows = sum(workload.classes if options["gram"] == "class" else scale**2 for scale in scales)
    eager = step_of(EAGER.loss(**options), inputs)
    return check(step_of(rival.loss(**options), inputs)(), eager(), exact_results(inputs, **options), summed_rows=rows)


def measured(rival: Any, workload: Workload, dtype: torch.dtype, options: dict[str, Any], replays: int) -> Any:
    """One rival's entry: its figures, or why there are none."""
    torch.cuda.empty_cache()
    try:
        errors = judged(rival, workload, dtype, options)
        set_bytes = bytes_moved(workload, dtype.itemsize)
        count = rotations(set_bytes, torch.cuda.get_device_properties(0).L2_cache_size)
        loss = rival.loss(**options)
        steps = [step_of(loss, workload.inputs(dtype, "cuda", seed=seed)) for seed in range(count)]
        host = host_seconds(steps[0])
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        steps[0]()
        peak = torch.cuda.max_memory_allocated() - before
        seconds = graph_seconds(steps, replays)
        return {"seconds": seconds, "host_seconds": host, "peak_bytes": peak, "inputs": count, "errors": errors}
    except WrongResultError as error:
        return {"wrong": str(error)}
    except torch.cuda.OutOfMemoryError:
        return {"out_of_memory": True}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="", help="only workloads whose title contains this")
    parser.add_argument("--replays", type=int, default=30, help="graph replays per figure (default: 30)")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures go")
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(1, "benchmarks.gpu: needs a CUDA GPU\n")
    rate = copy_rate()
    machine = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "triton": _triton_version()}
    document: dict[str, Any] = {"machine": {**facts(torch.get_num_threads()), **machine}, "copy_rate": rate}
    document["figures"] = []
    for workload in WORKLOADS:
        for precision, (dtype, matmul) in PRECISIONS.items():
            for form, options in FORMS.items():
                if chosen.workload in workload.title:
                    torch.set_float32_matmul_precision(matmul)
                    moved = bytes_moved(workload, dtype.itemsize)
                    entry = {"workload": workload.title, "precision": precision, "form": form, "bytes": moved}
                    entry["floor_seconds"] = moved / rate
                    entry["rivals"] = {
                        rival.name: measured(rival, workload, dtype, options, chosen.replays) for rival in gpu_rivals()
                    }
                    document["figures"].append(entry)
                    print("\n".join(lines(entry)), flush=True)
                    chosen.output.parent.mkdir(parents=True, exist_ok=True)
                    chosen.output.write_text(json.dumps(document, indent=1) + "\n")


def lines(entry: dict[str, Any]) -> list[str]:
    """An entry to read: times in microseconds and as a multiple of the floor."""
    floor = entry["floor_seconds"]
    text = [f"{entry['workload']}, {entry['precision']}, {entry['form']}: floor {floor * 1e6:.1f} us"]
    for name, figure in entry["rivals"].items():
        if "seconds" in figure:
            seconds, host = figure["seconds"], figure["host_seconds"]
            text.append(f"    {name}: {seconds * 1e6:.1f} us ({seconds / floor:.2f}x floor), host {host * 1e6:.0f} us")
        else:
            text.append(f"    {name}: {'out of memory' if 'out_of_memory' in figure else figure['wrong']}")
    return text


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "none"
    return str(triton.__version__)


if __name__ == "__main__":
    main()
