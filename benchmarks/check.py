"""The regression gate: how many times as fast as eager PyTorch the CPU backend is, on a small grid and in one run.

Ratios, not times, so that it holds on any machine; the limits lie at half or less of what a quiet machine shows, so
that a busy one passes and a lost vector loop or a lost linear sum does not.
"""

from __future__ import annotations

from typing import Any

from benchmarks.cases import small
from benchmarks.cpu import Settings, loss_entry
from benchmarks.results import seconds

LIMITS = {"spatial": 1.1, "class": 4.0}
"""By form: eager / ours, forward + backward."""
SETTINGS = Settings(threads=2, seconds=1.0, compiled="^$", autotuned="^$", measures_memory=False)


def failures(entry: dict[str, Any]) -> list[str]:
    """What is wrong with an entry; empty where its ratio is above the limit."""
    eager, ours = seconds(entry, "eager"), seconds(entry, "cpp")
    if eager is None or ours is None:
        return [f"{entry['label']}: no figure: {entry['rivals']}"]
    limit = LIMITS[entry["case"]["form"]]
    return [] if eager / ours >= limit else [f"{entry['label']}: {eager / ours:.2f}x eager, limit {limit:g}x"]


def run(rate: float) -> list[str]:
    """Measures the small grid, prints the ratios and gives what failed."""
    failed = []
    for case in small():
        entry = loss_entry(case, SETTINGS, rate)
        failed += failures(entry)
        eager, ours = seconds(entry, "eager"), seconds(entry, "cpp")
        print(f"{case.label}: " + (f"{eager / ours:.1f}x eager" if eager and ours else "no figure"), flush=True)
    return failed
