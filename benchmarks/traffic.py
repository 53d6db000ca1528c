"""Memory traffic of the Triton backend beside the floor, by arithmetic: `python -m benchmarks.traffic [--write]`.

Nothing runs but the plans of the launches: every figure follows from shapes. tests/interpreter/test_traffic.py holds
the account against what Triton's interpreter loads and stores.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import operations
from benchmarks.accesses import DZ, SAME_ADDRESS, ExactSum, Launch, LinearSum, Nodes, PairsAgain, Problem, Sums
from benchmarks.cases import Case
from benchmarks.launch_accesses import POOLED, backward, forward, plan_forward
from benchmarks.rivals import EAGER
from benchmarks.show import size
from benchmarks.tables import markdown
from benchmarks.workloads import FORMS, WORKLOADS, Workload
from icd_kernels.backends.triton.plan import ceil_div, layout
from icd_kernels.checks import compute_dtype
from icd_kernels.geometry import cell_count
from icd_kernels.options import make_options

PAGE = Path(__file__).parents[1] / "docs/triton_traffic.md"
PRECISIONS = ("float32", "bfloat16")
NODES = 32
"""Of every sum linear in K: logits of the workloads take 20 to 40 at K = 1,000 and 28 to 40 at K = 21,841."""
CACHE = 50e6
"""Bytes of an H100's second-level cache."""
BACKWARD_PARTS = ("cells", "weight", "scatter")


class Account(NamedTuple):
    """Both launches of a training step's loss."""

    case: Case
    forward: Launch
    backward: Launch

    @property
    def floor(self) -> int:
        return self.case.bytes_moved

    @property
    def asked(self) -> int:
        return self.forward.asked + self.backward.asked

    @property
    def once(self) -> int:
        return self.forward.once + self.backward.once

    @property
    def kept(self) -> int:
        """Bytes from forward to backward: dl/dz and the pooled features."""
        return self.backward.sizes[DZ] + self.backward.sizes[POOLED]


def account(case: Case) -> Account:
    problem = problem_of(case)
    return Account(case, forward(problem, usual_sums(problem)), backward(problem))


def problem_of(case: Case) -> Problem:
    """Its layouts; nothing is allocated."""
    workload = case.workload
    tensors = []
    for shape in (workload.student, workload.teacher):
        sizes = (workload.batch, *shape), (workload.classes, shape[0]), (workload.classes,)
        tensors += [torch.empty(size, dtype=case.dtype, device="meta") for size in sizes]
    options = make_options(**case.options)
    return Problem(tuple(map(layout, tensors)), options, compute_dtype(*tensors))


def usual_sums(problem: Problem) -> Sums:
    """Every divergence summed again, which is the most there can be; sums linear in K with as many nodes as usual."""
    form, classes = plan_forward(problem).gram.form, problem.classes
    if form.GRAM == "class":
        nodes = Nodes(NODES, NODES, NODES, classes // 2)
        is_exact = form.CLASS_SUM == "exact"
        kind = ExactSum(ceil_div(classes, form.CLASS_ROWS)) if is_exact else LinearSum(nodes, nodes)
        return {kind: problem.batch * form.CELLS}
    if form.RESIDENT:
        return {}
    counts = [scale * scale for scale in form.SCALES]
    return {
        PairsAgain(count, min(form.PAIR_BLOCK, count - first)): problem.batch
        for count in counts
        for first in range(0, count, form.PAIR_BLOCK)
    }


def accounts() -> Iterator[Account]:
    for workload in WORKLOADS:
        for form in FORMS:
            for precision in PRECISIONS:
                yield account(Case(workload, form, precision))


def byte_table(found: Iterable[Account]) -> str:
    header = ["floor", "once", "asked", "once / floor", "asked / floor", "forward asked", "backward asked"]
    rows = []
    for one in found:
        sizes = [size(amount) for amount in (one.floor, one.once, one.asked)]
        ratios = [f"{amount / one.floor:.2f}" for amount in (one.once, one.asked)]
        launches = [size(launch.asked) for launch in (one.forward, one.backward)]
        rows.append([*title(one), one.case.precision, *sizes, *ratios, *launches])
    return markdown(["workload", "form", "dtype", *header], rows)


def title(one: Account) -> list[str]:
    return [one.case.workload.title, one.case.form]


def part_table(found: Iterable[Account]) -> str:
    """Every kind of task by itself: the bytes of the buffers it touches, and those it asks for, over the floor."""
    rows = []
    for one in found:
        others = {entry.part for entry in one.forward.accesses} - {"pool", "project"}
        launches = [one.forward.of(parts) for parts in ({"pool"}, {"project"}, others)]
        launches += [one.backward.of({part}) for part in BACKWARD_PARTS]
        cells = [f"{launch.once / one.floor:.2f} / {launch.asked / one.floor:.2f}" for launch in launches]
        rows.append([*title(one), one.case.precision, *cells])
    return markdown(["workload", "form", "dtype", "pool", "project", "Gram stage", *BACKWARD_PARTS], rows)


def largest_table(found: Iterable[Account], count: int = 3) -> str:
    """The loads that ask for most beyond the size of what they read."""
    rows = []
    for one in found:
        largest = sorted(read_again(one), key=lambda entry: -entry[1])[:count]
        cells = [f"{what}: {size(extra)} ({extra / one.floor:.2f})" for what, extra in largest]
        rows.append([*title(one), *cells])
    return markdown(["workload", "form", "most", "second", "third"], rows)


def read_again(one: Account) -> Iterator[tuple[str, int]]:
    """A part and a buffer, and the bytes loaded after the first time."""
    for launch in (one.forward, one.backward):
        loaded: Counter[tuple[str, str]] = Counter()
        for entry in launch.accesses:
            if entry.part != SAME_ADDRESS:
                loaded[entry.part, entry.buffer] += entry.loaded
        for (part, buffer), amount in loaded.items():
            yield f"{part}, {buffer}", amount - launch.sizes[buffer]


def workspace_table(found: Iterable[Account]) -> str:
    rows = []
    for one in found:
        amounts = (one.forward.workspace, one.kept, one.backward.workspace)
        together = max(one.forward.workspace, one.backward.workspace) + one.kept
        fits = "yes" if together <= CACHE else "no"
        rows.append([*title(one), *map(size, amounts), size(together), fits])
    header = ["forward's workspace", "kept for the backward", "backward's workspace", "most at a time", "within 50 MB"]
    return markdown(["workload", "form", *header], rows)


def eager_operations(form: str) -> int:
    """Operations that PyTorch dispatches for the definition, forward and backward. Sizes do not change their number."""
    workload = Workload("small", 1, (2, 4, 4), (2, 4, 4), 2)
    return operations.count(EAGER.forward_backward(workload.inputs(), **FORMS[form])).operations


def launches() -> str:
    eager = ", ".join(f"{eager_operations(form)} in {form} form" for form in FORMS)
    return (
        "Launches: 1 forward and 1 backward (2 for gram `sample` with reduction `none`). The definition in eager\n"
        f"PyTorch dispatches {eager}, counted on a CPU, views left out."
    )


def linear_sums(found: Iterable[Account]) -> str:
    """What one cell asks for where its class Gram is summed in time linear in K."""
    lines = []
    for one in found:
        workload, launch = one.case.workload, one.forward
        cells = workload.batch * cell_count(one.case.scales)
        beside = sum(entry.loaded for entry in launch.of({SAME_ADDRESS}).accesses)
        if beside:
            sums = launch.of({"class sums"}).asked
            lines.append(f"K = {workload.classes:,}: {size(sums / cells)}, and {size(beside / cells)} of interpolation")
    return f"A cell's sums linear in K, {NODES} nodes each, float32: {'; '.join(lines)}."


def section() -> str:
    found = list(accounts())
    single = [one for one in found if one.case.precision == "float32"]
    parts = {
        "": launches(),
        "## Bytes": byte_table(found),
        "## By kind of task": f"Once / asked, each over the floor.\n\n{part_table(found)}\n\n{linear_sums(single)}",
        "## What is read again": "Bytes beyond the buffer's own size, float32; over the floor in brackets.\n\n"
        + largest_table(single),
        "## Workspace": "float32; for bfloat16 the same, since the math is float32.\n\n" + workspace_table(single),
    }
    return "\n\n".join(f"{heading}\n\n{text}".strip() for heading, text in parts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}, between its markers")
    text = section()
    if parser.parse_args().write:
        from benchmarks.pages import insert  # needs matplotlib

        insert(PAGE, "triton-traffic", text)
        print(f"wrote {PAGE}")
    else:
        print(text)


if __name__ == "__main__":
    main()
