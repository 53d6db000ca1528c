"""How a run is made, from pytest's command line."""

from __future__ import annotations

from typing import NamedTuple


class Settings(NamedTuple):
    """Settings of a run; every figure of it has them in common."""

    threads: int
    """CPU threads of every rival."""
    seconds: float
    """How long each rival is timed, about."""
    batch: int | None
    """Images per batch; None where each workload keeps its own."""
