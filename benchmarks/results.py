"""Result files: one for each machine and commit, JSON, every figure with what decides it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
FORMAT = 2
Document = dict[str, Any]


def path_for(machine: dict[str, Any]) -> Path:
    """Where a run's figures go: results/DEVICE-COMMIT.json."""
    device = machine.get("gpu", machine["cpu"])
    name = re.sub(r"[^a-z0-9]+", "-", f"{device} {machine['commit'][:10]}".lower()).strip("-")
    kind = "gpu" if "gpu" in machine else "cpu"
    return FOLDER / f"{kind}-{name}.json"


def write(path: Path, document: Document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, **document}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def add(document: Document, entry: dict[str, Any]) -> None:
    """Appends an entry, or puts it in the place of the one of its label."""
    labels = [known["label"] for known in document["entries"]]
    if entry["label"] in labels:
        document["entries"][labels.index(entry["label"])] = entry
    else:
        document["entries"].append(entry)


def updated(path: Path, document: Document) -> Document:
    """The file's entries and settings under the new run's date, commit and copy rate.

    Raises:
        ValueError: the file is of another machine, or of other versions.
    """
    known = read(path)
    changing = ("commit", "is_changed")
    for name, value in json.loads(json.dumps(document["machine"])).items():
        if name not in changing and known["machine"].get(name) != value:
            raise ValueError(f"{path}: {name} was {known['machine'].get(name)!r}, here it is {value!r}")
    return {**document, "settings": known["settings"], "entries": known["entries"]}


def read(path: Path) -> Document:
    """Reads a result file.

    Raises:
        ValueError: it is no result file, or one of another format.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: expected a result file of format {FORMAT}, got format {found}")
    return document


def newest(kind: str, folder: Path = FOLDER) -> Path | None:
    """The newest complete file of "cpu" or "gpu", by the date in it; None where there is none."""
    complete = [path for path in folder.glob(f"{kind}-*.json") if read(path)["settings"]["grid"] == "full"]
    return max(complete, key=lambda path: read(path)["date"], default=None)


def timed(entry: dict[str, Any], rival: str, part: str = "both") -> dict[str, float] | None:
    """A rival's quantiles; None where it has no figure."""
    return entry["rivals"].get(rival, {}).get(part)


def seconds(entry: dict[str, Any], rival: str, part: str = "both") -> float | None:
    """A rival's median."""
    quantiles = timed(entry, rival, part)
    return None if quantiles is None else quantiles["median"]
