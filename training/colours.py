"""One colour for each method, the same in every figure of a run."""

from __future__ import annotations

import matplotlib
from matplotlib.colors import to_hex

FIXED = {"none": "#7f7f7f", "kd": "#1f77b4", "icd-kd": "#d62728"}


def colours(methods: tuple[str, ...]) -> dict[str, str]:
    """Those of the default methods are fixed; the others share a colour map between them."""
    others = [method for method in methods if method not in FIXED]
    colour_map = matplotlib.colormaps["turbo"]
    shared = {method: to_hex(colour_map((place + 0.5) / len(others))) for place, method in enumerate(others)}
    return {method: FIXED.get(method) or shared[method] for method in methods}
