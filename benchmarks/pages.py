"""Writes result files into the README and docs/benchmarks.md, between markers, and draws the plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import plots, tables
from benchmarks.results import Document

ROOT = Path(__file__).parents[1]
SWEEPS = tuple(plots.AXES)


def write(documents: Sequence[Document], root: Path = ROOT) -> Iterator[Path]:
    """Every file that is written, in turn; the sections of other devices stay as they are."""
    for document in documents:
        kind = "gpu" if "gpu" in document["machine"] else "cpu"
        images = root / "docs/images"
        images.mkdir(parents=True, exist_ok=True)
        for sweep in SWEEPS:
            if any(tables.losses(document, sweep=sweep)):
                plots.sweep(document, sweep, images / f"benchmarks_{kind}_{sweep}.png")
                yield images / f"benchmarks_{kind}_{sweep}.png"
        insert(root / "README.md", f"{kind}-benchmarks", summary(document))
        yield root / "README.md"
        insert(root / "docs/benchmarks.md", f"{kind}-benchmarks", details(document, kind))
        yield root / "docs/benchmarks.md"


def insert(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the file's two markers of that name.

    Raises:
        ValueError: a marker is missing.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path} must hold the markers {begin!r} and {end!r}, in this order")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def summary(document: Document) -> str:
    """The README's part: five rows, and how they were measured."""
    return "\n\n".join((tables.headline_table(document), tables.short_caption(document)))


def details(document: Document, kind: str) -> str:
    """Everything."""
    images = "\n\n".join(f"![time against {sweep}](images/benchmarks_{kind}_{sweep}.png)" for sweep in SWEEPS)
    parts = {
        "": tables.caption(document),
        "### In short": f"{tables.loss_table(document)}\n\n{tables.step_table(document)}",
        "### Growth": f"{tables.growth_table(document)}\n\n{images}",
        "### Out of memory in the sweeps": tables.absences(document) or "None.",
        "### Objectives and training steps": tables.whole_table(document),
        "### Losses": tables.detail_table(document),
    }
    return "\n\n".join(f"{title}\n\n{text}".strip() for title, text in parts.items())
