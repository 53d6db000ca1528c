"""Two result files, figure by figure: what became slower, and whether that is more than noise.

Figures of different runs are compared as multiples of a rival that was timed in the same run, eager PyTorch unless told
otherwise, so that a machine that was slower that day does not count. A change has an interval: two standard errors of
the medians it is made of, to each side. It is past the limit when even its near end is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.clock import median_noise
from benchmarks.results import Document, timed

STANDARD_ERRORS = 2.0


class Change(NamedTuple):
    """How a rival's figure of the second file relates to that of the first: 1.1 is ten percent slower."""

    label: str
    rival: str
    part: str
    ratio: float
    noise: float
    """Half the interval, as a fraction of the ratio."""

    def is_past(self, limit: float) -> bool:
        return self.ratio * (1 - self.noise) > limit

    def line(self, limit: float) -> str:
        mark = "SLOWER" if self.is_past(limit) else "faster" if self.ratio * (1 + self.noise) < 1 / limit else ""
        return f"{self.ratio:6.3f} ± {self.ratio * self.noise:.3f}  {mark:6s}  {self.rival}, {self.part}: {self.label}"


def changes(first: Document, second: Document, relative_to: str | None) -> Iterator[Change]:
    """Every figure that both files have; `relative_to` None compares seconds with seconds."""
    before = {entry["label"]: entry for entry in first["entries"]}
    for entry in second["entries"]:
        if entry["label"] in before:
            yield from _changes_of(before[entry["label"]], entry, relative_to)


def _changes_of(before: dict[str, Any], after: dict[str, Any], relative_to: str | None) -> Iterator[Change]:
    for rival in after["rivals"]:
        if rival == relative_to:
            continue
        for part in ("forward", "both"):
            pairs = [(timed(before, rival, part), timed(after, rival, part))]
            if relative_to is not None and timed(before, relative_to, part) and timed(after, relative_to, part):
                pairs.append((timed(after, relative_to, part), timed(before, relative_to, part)))
            found = [(old, new) for old, new in pairs if old is not None and new is not None]
            if len(found) == len(pairs):
                ratio = math.prod(new["median"] / old["median"] for old, new in found)
                variance = sum(median_noise(figure) ** 2 for pair in found for figure in pair)
                yield Change(after["label"], rival, part, ratio, STANDARD_ERRORS * math.sqrt(variance))


def report(first: Document, second: Document, limit: float, relative_to: str | None) -> tuple[str, bool]:
    """The changes to read, the worst first, and whether none is past the limit.

    Raises:
        ValueError: the files have no figure in common.
    """
    found = sorted(changes(first, second, relative_to), key=lambda change: -change.ratio)
    if not found:
        raise ValueError("the two files have no figure in common")
    past = sum(change.is_past(limit) for change in found)
    unit = f"as multiples of {relative_to!r} of the same run" if relative_to else "seconds"
    lines = [f"second / first, {unit}: {len(found)} figures, {past} past {limit:g}"]
    return "\n".join([*lines, *(change.line(limit) for change in found)]), past == 0
