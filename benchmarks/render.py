"""Writes a CPU run's table into a Markdown file: `python -m benchmarks.render RESULT.json README.md`.

No figure is typed by hand: the text between the file's two markers is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import HEADER, Figure, rows
from benchmarks.workloads import LOGIT_SIZE

BEGIN, END = "<!-- cpu-benchmarks: begin -->", "<!-- cpu-benchmarks: end -->"


def rendered(result: dict[str, Any]) -> str:
    """The table, and what it was measured on, of pytest-benchmark's JSON."""
    figures = [Figure(entry["stats"]["median"], entry["extra_info"]) for entry in result["benchmarks"]]
    return "\n\n".join((_markdown(HEADER, rows(figures)), _caption(result["machine_info"], figures)))


def replaced(text: str, insert: str) -> str:
    """`text` with `insert` between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the file must hold the markers {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n{insert}\n{END}{after}"


def _markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = (header, ["---"] * len(header), *body)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _caption(machine: dict[str, Any], figures: Sequence[Figure]) -> str:
    errors = [max(figure.facts["errors"].values()) for figure in figures if figure.facts["rival"] == "cpp"]
    worst = f"; the worst error of `cpp` is {max(errors):.0e} of the largest element" if errors else ""
    return (
        f"Medians of forward + backward (loss and the gradients by the student's features, weight and bias), float32, "
        f"{machine['threads']} threads, all rivals in one run: {machine['cpu']} ({machine['cpu_capability']}), "
        f"Python {machine['python']}, torch {machine['torch']}, icd_kernels {machine['icd_kernels']}. "
        f"Maps are random, as after a ReLU; heads give every pixel logits of standard deviation {LOGIT_SIZE:g}. "
        "Memory is the peak of the resident set above the tensors given, gradients included. "
        f"Every rival was first compared with the float64 reference{worst}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a CPU run's table between the markers of a Markdown file.")
    parser.add_argument("result", type=Path, help="the JSON file of pytest --benchmark-json")
    parser.add_argument("markdown", type=Path, help=f"the file that holds {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    table = rendered(json.loads(options.result.read_text(encoding="utf-8")))
    text = options.markdown.read_text(encoding="utf-8")
    options.markdown.write_text(replaced(text, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
