"""The table of a CPU run: one row for each workload, ratios to the rivals of the same run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

FORM_TITLES = {"spatial": "spatial / nested / l2", "class": "class / adaptive / none"}
HEADER = (
    "Gram / pyramid / normalize",
    "workload",
    "eager",
    "`torch.compile`",
    "`cpp`",
    "vs eager",
    "vs compiled",
    "memory (`cpp`)",
    "memory (eager)",
    "memory (compiled)",
)


class Figure(NamedTuple):
    """A rival's figures on a workload: median seconds, bytes above the given tensors, and what was run."""

    seconds: float
    facts: dict[str, Any]

    @property
    def group(self) -> tuple[Any, ...]:
        workload = self.facts["workload"]
        return self.facts["form"], workload["title"], workload["batch"]


def rows(figures: Iterable[Figure]) -> list[tuple[str, ...]]:
    """The cells of the table, row by row; a rival that is not there leaves an empty one."""
    groups: dict[tuple[Any, ...], dict[str, Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, {})[figure.facts["rival"]] = figure
    return [_row(rivals) for rivals in groups.values()]


def _row(rivals: dict[str, Figure]) -> tuple[str, ...]:
    facts = next(iter(rivals.values())).facts
    eager, compiled, cpp = (rivals.get(name) for name in ("eager", "compiled", "cpp"))
    return (
        FORM_TITLES[facts["form"]],
        _shapes(facts["workload"]),
        _time(eager),
        _time(compiled),
        _time(cpp),
        _ratio(eager, cpp),
        _ratio(compiled, cpp),
        _memory(cpp),
        _memory(eager),
        _memory(compiled),
    )


def _shapes(workload: dict[str, Any]) -> str:
    teacher, student = ("x".join(map(str, workload[side])) for side in ("teacher", "student"))
    return f"{workload['title']}: B {workload['batch']}, {teacher}→{student}, K {workload['classes']:,}"


def _time(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.seconds * 1e3:.3g} ms" if figure.seconds < 0.9995 else f"{figure.seconds:.3g} s"


def _ratio(rival: Figure | None, ours: Figure | None) -> str:
    return "" if rival is None or ours is None else f"{rival.seconds / ours.seconds:.1f}x"


def _memory(figure: Figure | None) -> str:
    if figure is None:
        return ""
    amount = figure.facts["extra_peak_bytes"] / 1e6
    megabytes = f"{amount:,.0f} MB" if amount >= 10 else f"{amount:.1f} MB"
    return megabytes if figure.facts["is_memory_measured"] else f"{megabytes} (computed)"
