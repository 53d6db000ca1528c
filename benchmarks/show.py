"""An entry of a result file as lines to read."""

from __future__ import annotations

from typing import Any


def text(entry: dict[str, Any]) -> str:
    """Times, multiples of the floor, memory; for a rival without figures its reason."""
    floor = entry.get("floor_seconds")
    head = entry["label"] + (f": floor {time(floor)}" if floor else "")
    return "\n".join([head, *(f"    {name}: {_line(figures, floor)}" for name, figures in entry["rivals"].items())])


def _line(figures: dict[str, Any], floor: float | None) -> str:
    if "both" not in figures:
        return "; ".join(f"{reason.replace('_', ' ')}: {detail}" for reason, detail in figures.items())
    both = figures["both"]
    parts = [f"{time(both['median'])} ({time(both['p25'])} to {time(both['p75'])}, n {both['count']:g})"]
    parts += [f"{both['median'] / floor:.1f}x floor"] if floor else []
    parts += [f"forward {time(figures['forward']['median'])}"] if "forward" in figures else []
    parts += [f"host {time(figures['host_seconds'])}"] if "host_seconds" in figures else []
    parts += [f"memory {size(figures['extra_peak'])}"] if "extra_peak" in figures else []
    parts += [f"INEXACT {figures['inexact']}"] if "inexact" in figures else []
    return ", ".join(parts)


def time(seconds: float | None) -> str:
    """Three digits, in the unit that suits."""
    if seconds is None:
        return ""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:
            return f"{_three(seconds * factor)} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def size(amount: float | None) -> str:
    """Bytes in the unit that suits."""
    if amount is None:
        return ""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if amount >= 0.9995 * factor:
            return f"{_three(amount / factor)} {unit}"
    return f"{amount / 1e3:.0f} kB"


def ratio(rival: float | None, ours: float | None) -> str:
    """How many times as long the rival takes."""
    return "" if rival is None or ours is None else f"{_three(rival / ours)}x"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
