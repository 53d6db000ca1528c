"""Result files as Markdown tables; no figure is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.cases import Case, from_facts
from benchmarks.clock import exponent
from benchmarks.results import Document, seconds, timed
from benchmarks.show import ratio, size, time
from benchmarks.workloads import LOGIT_SIZE

Entry = dict[str, Any]
RIVALS = ("eager", "released", "compiled", "compiled max-autotune")
FORM_TITLES = {"spatial": "spatial / nested / l2", "class": "class / adaptive / none"}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def losses(document: Document, *, sweep: str = "", precision: str = "") -> Iterator[tuple[Case, Entry]]:
    """The entries of a sweep, or those of none, of one precision or of all."""
    for entry in document["entries"]:
        if entry["kind"] == "loss":
            case = from_facts(entry["case"])
            if case.sweep == sweep and precision in ("", case.precision):
                yield case, entry


def whole(document: Document) -> Iterator[Entry]:
    """Objectives and training steps."""
    return (entry for entry in document["entries"] if entry["kind"] != "loss")


def ours_of(document: Document) -> str:
    """The backend whose figures the tables are about."""
    return "triton" if "gpu" in document["machine"] else "cpp"


HEADLINES = (
    ("spatial", "CIFAR-100 ResNet32x4→MobileNetV2"),
    ("class", "CIFAR-100 ResNet32x4→MobileNetV2"),
    ("spatial", "CUB-200 ResNet32x4→MobileNetV2"),
    ("class", "CUB-200 ResNet32x4→MobileNetV2"),
    ("class", "ImageNet ResNet50→MobileNetV2"),
)
"""Form and workload of the README's rows."""


def headline_table(document: Document) -> str:
    """The README's: five rows of :func:`loss_table`."""
    ours = ours_of(document)
    header = ["forward + backward", "eager", "`torch.compile`", f"`{ours}`", "vs eager", "vs compiled", "memory"]
    rows = []
    for case, entry in losses(document, precision="float32"):
        if case.layout == "contiguous" and (case.form, case.workload.title) in HEADLINES:
            mine, times = seconds(entry, ours), [seconds(entry, rival) for rival in ("eager", "compiled")]
            cells = [_time_or_reason(entry, rival) for rival in ("eager", "compiled", ours)]
            memory = [size(memory_of(entry, rival)) for rival in (ours, "eager")]
            name = f"{case.form}, {case.workload.title.split()[0]}, K {case.workload.classes:,}"
            rows.append([name, *cells, *(ratio(rival, mine) for rival in times), " for ".join(memory)])
    return markdown(header, rows)


def loss_table(document: Document) -> str:
    """Every workload in float32 and both forms, forward + backward."""
    ours = ours_of(document)
    header = ["form", "workload", "eager", "released", "`torch.compile`", f"`{ours}`"]
    header += ["vs eager", "vs released", "vs compiled", f"memory (`{ours}`)", "memory (eager)"]
    rows = []
    for case, entry in losses(document, precision="float32"):
        if case.layout == "contiguous":
            mine, times = seconds(entry, ours), [seconds(entry, rival) for rival in RIVALS[:3]]
            cells = [_time_or_reason(entry, rival) for rival in (*RIVALS[:3], ours)]
            rows.append(
                [case.form, f"{case.workload.title}: {case.workload.shapes}", *cells]
                + [ratio(rival, mine) for rival in times]
                + [size(memory_of(entry, rival)) for rival in (ours, "eager")]
            )
    return markdown(header, rows)


def detail_table(document: Document) -> str:
    """Every workload in every precision and layout, each rival with its spread, forward, floor, operations."""
    header = ["rival", "forward + backward", "p5 to p95", "n", "forward", "times the floor", "memory"]
    header += ["operations, host waits" if "gpu" not in document["machine"] else "launches", "first call", "error"]
    parts = []
    for case, entry in losses(document):
        rows = [_detail(entry, rival) for rival in entry["rivals"]]
        parts.append(
            f"**{case.label}.** {size(entry['bytes'])} to move, floor {time(entry['floor_seconds'])}.\n\n"
            + markdown(header, rows)
        )
    return "\n\n".join(parts)


def _detail(entry: Entry, rival: str) -> list[str]:
    figures, both = entry["rivals"][rival], timed(entry, rival)
    if both is None:
        return [f"`{rival}`", _time_or_reason(entry, rival), *[""] * 8]
    counted = figures.get("launches", figures.get("operations"))
    waits = f", {figures['host_waits']}" if "host_waits" in figures else ""
    error = f"{max(figures['errors'].values()):.0e}"
    return [
        f"`{rival}`",
        time(both["median"]),
        f"{time(both['p5'])} to {time(both['p95'])}",
        f"{both['count']:g}",
        time(seconds(entry, rival, "forward")),
        f"{both['median'] / entry['floor_seconds']:.1f}",
        size(figures.get("extra_peak")),
        "" if counted is None else f"{counted}{waits}",
        time(figures["first_call_seconds"]),
        f"{error}, past the gate" if "inexact" in figures else error,
    ]


def whole_table(document: Document) -> str:
    """Objectives and training steps, as multiples of plain KD and of ours."""
    header = ["method, way", "time", "p5 to p95", "vs KD", "vs ours", "memory", "operations, host waits"]
    parts = []
    for entry in whole(document):
        plain, rows = seconds(entry, "kd, ours"), []
        for name, figures in entry["rivals"].items():
            both, mine = figures["both"], seconds(entry, f"{name.split(',')[0]}, ours")
            counted = f"{figures['operations']}, {figures['host_waits']}" if "operations" in figures else ""
            spread, ratios = (
                f"{time(both['p5'])} to {time(both['p95'])}",
                (ratio(both["median"], t) for t in (plain, mine)),
            )
            rows.append([name, time(both["median"]), spread, *ratios, size(figures.get("extra_peak")), counted])
        parts.append(f"**{entry['label']}**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def step_table(document: Document) -> str:
    """Whole training steps, ours beside eager and the released way."""
    rows = []
    for entry in whole(document):
        if entry["kind"] == "training":
            for method in ("kd", "sd-kd", "icd-kd"):
                ways = [f"{method}, {way}" for way in ("eager", "released", "ours")]
                times = [seconds(entry, way) for way in ways]
                memory = [size(memory_of(entry, way)) for way in ways]
                rows.append([entry["label"].removeprefix("Training step, "), method, *map(time, times), *memory])
    header = ["training step", "method", "eager", "released", "ours"]
    return markdown([*header, "memory (eager)", "memory (released)", "memory (ours)"], rows)


def growth(document: Document, sweep: str, form: str) -> dict[str, dict[int, float]]:
    """Seconds against size, by rival."""
    found: dict[str, dict[int, float]] = {}
    for case, entry in losses(document, sweep=sweep):
        if case.form == form:
            for rival in entry["rivals"]:
                value = seconds(entry, rival)
                if value is not None:
                    found.setdefault(rival, {})[case.size] = value
    return found


FITTED = 4
"""Points at the large end that an exponent is fitted to: small sizes show the overhead instead."""


def fitted_exponent(points: dict[int, float]) -> float | None:
    """The growth at the large end; None with too few points."""
    largest = dict(sorted(points.items())[-FITTED:])
    return exponent(largest) if len(largest) == FITTED else None


def growth_table(document: Document) -> str:
    """The exponents of every sweep."""
    rows = []
    for sweep in ("classes", "batch", "side", "regions"):
        for form in FORM_TITLES:
            for rival, points in growth(document, sweep, form).items():
                slope, sizes = fitted_exponent(points), sorted(points)[-FITTED:]
                if slope is not None:
                    span = f"{sizes[0]:,} to {sizes[-1]:,}"
                    rows.append([sweep, form, f"`{rival}`", f"{slope:.2f}", span, time(points[sizes[-1]])])
    return markdown(["grows", "form", "rival", "exponent", "fitted over", "time at the largest"], rows)


def absences(document: Document) -> str:
    """Rivals that ran out of memory in a sweep, with what they need."""
    lines = []
    for sweep in ("classes", "batch", "side", "regions"):
        for case, entry in losses(document, sweep=sweep):
            for rival, figures in entry["rivals"].items():
                if "out_of_memory" in figures:
                    lines.append(f"- {rival}, {case.label}: {_time_or_reason(entry, rival)}")
    return "\n".join(lines)


def memory_of(entry: Entry, rival: str) -> float | None:
    figures = entry["rivals"].get(rival, {})
    needed = figures.get("out_of_memory")
    return needed["needed"] if isinstance(needed, dict) else figures.get("extra_peak")


def _time_or_reason(entry: Entry, rival: str) -> str:
    figures = entry["rivals"].get(rival)
    if figures is None:
        return ""
    if "both" in figures:
        return time(figures["both"]["median"])
    if "called" in figures:
        return f"{time(figures['called']['median'])} (no graph)"
    if "out_of_memory" in figures:
        needed = figures["out_of_memory"]
        return f"out of memory: needs {size(needed['needed'])}" if isinstance(needed, dict) else "out of memory"
    return "not in the released code" if rival == "released" else next(iter(figures)).replace("_", " ")


def short_caption(document: Document) -> str:
    """What the figures were measured on, in a sentence."""
    machine = document["machine"]
    return (
        f"{_device(document)}, torch {machine['torch']}, commit {machine['commit'][:10]}, {document['date'][:10]}; "
        "medians, all rivals of a row in turn in one run; ResNet32x4→MobileNetV2, on ImageNet ResNet50. Every row: "
        "[docs/benchmarks.md](docs/benchmarks.md)."
    )


def _device(document: Document) -> str:
    machine = document["machine"]
    if "gpu" in machine:
        return f"{machine['gpu']}, CUDA {machine['cuda']}, Triton {machine['triton']}"
    return f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads"


def caption(document: Document) -> str:
    """What the figures were measured on."""
    machine, settings = document["machine"], document["settings"]
    return (
        f"{_device(document)}; Python {machine['python']}, torch {machine['torch']}, "
        f"icd_kernels {machine['icd_kernels']}, commit {machine['commit'][:10]}, {document['date'][:10]}; a copy moves "
        f"{document['copy_bytes_per_second'] / 1e9:,.0f} GB/s, read and written. Medians of forward + backward (loss "
        "and gradients by the student's features, weight and bias), all rivals of a row in turn in one run, "
        f"{settings['seconds']:g} s each, half of it in sweeps. Maps are random, as after a ReLU; heads give every "
        "pixel logits of standard "
        f"deviation {LOGIT_SIZE:g}. Memory is the peak above the tensors given, gradients included. Every backend was "
        "first found right against the float64 reference."
    )
