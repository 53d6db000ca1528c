"""What tests have to say at the end of a run, from whichever process they ran in."""

from __future__ import annotations

SAID: list[str] = []


def say(line: str) -> None:
    """A line for the summary."""
    SAID.append(line)
