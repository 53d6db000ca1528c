"""Times on the host's clock: rivals in turn, every sample kept as quantiles."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

MIN_ROUNDS = 5
SLOW_ROUNDS = 3
"""Rounds where MIN_ROUNDS would take over ten times as long as was asked for."""

Quantiles = dict[str, float]
_POINTS = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}


def interleaved(
    actions: dict[str, Callable[[], object]], seconds: float, wait: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every call, the actions in turn so that a busy moment meets them alike, for about `seconds` each.

    One round before the first that counts warms up. `wait` is called after each action, inside its time.
    """
    samples: dict[str, list[float]] = {name: [] for name in actions}
    start = time.perf_counter()
    for rounds in range(-1, 10**6):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            wait()
            if rounds >= 0:
                samples[name].append(time.perf_counter() - began)
        spent = (time.perf_counter() - start) / len(actions)
        if spent >= seconds and rounds + 1 >= (MIN_ROUNDS if spent < 10 * seconds else SLOW_ROUNDS):
            break
    return samples


def quantiles(samples: Sequence[float]) -> Quantiles:
    """Count, least, most, and five quantiles by linear interpolation."""
    ordered = sorted(samples)
    found: Quantiles = {"count": len(ordered), "least": ordered[0]}
    for name, point in _POINTS.items():
        place = point * (len(ordered) - 1)
        low, share = math.floor(place), place - math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        found[name] = ordered[low] * (1 - share) + ordered[high] * share
    return {**found, "most": ordered[-1]}


def median_noise(figure: Quantiles) -> float:
    """Standard error of the median as a fraction of it: 1.253 σ / √n, with σ = (p75 - p25) / 1.349."""
    return 1.253 * (figure["p75"] - figure["p25"]) / 1.349 / math.sqrt(figure["count"]) / figure["median"]


def exponent(points: Mapping[int, float]) -> float:
    """The slope of log value over log size, by least squares."""
    x, y = [math.log(size) for size in points], [math.log(value) for value in points.values()]
    return statistics.linear_regression(x, y).slope
