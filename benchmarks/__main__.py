"""`python -m benchmarks run | render | compare | check | stages`: figures, tables, regressions: README.md here."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import check, compare, cpu, gpu, results, show, stages
from benchmarks.cases import grid
from benchmarks.machine import facts

ALL_COMPILED = r"float32(?!.*sweep)|class; sweep of classes"
ONE_AUTOTUNED = r"^CUB-200 ResNet32x4→MobileNetV2, B \d+, [^;]*float32, (spatial|class)$"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = found.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, and write a result file")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--grid", choices=("full", "small"), default="full")
    run.add_argument("--only", default="", help="only entries whose label this regular expression finds")
    run.add_argument("--compiled", default=ALL_COMPILED, help="cases that torch.compile takes part in: the same")
    run.add_argument("--autotuned", default=ONE_AUTOTUNED, help="cases that max-autotune takes part in: the same")
    run.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    run.add_argument("--seconds", type=float, default=1.0, help="CPU time per rival and part, about (default: 1)")
    run.add_argument("--replays", type=int, default=20, help="GPU graph replays per figure (default: 20)")
    run.add_argument("--processes", type=int, default=8, help="processes that compile for a GPU (default: 8)")
    run.add_argument("--output", type=Path, help="in place of benchmarks/results/DEVICE-COMMIT.json")
    run.add_argument("--update", type=Path, help="a result file of this machine: its other entries are kept")
    render = commands.add_parser("render", help="write the README's and docs/benchmarks.md's tables and the plots")
    render.add_argument("files", type=Path, nargs="*", help="result files (default: the newest full one of each kind)")
    pair = commands.add_parser("compare", help="ratios of a second result file to a first; exits with 1 past a limit")
    pair.add_argument("first", type=Path)
    pair.add_argument("second", type=Path)
    pair.add_argument("--limit", type=float, default=1.1, help="the slowdown that fails (default: 1.1)")
    pair.add_argument("--relative-to", default="eager", help='a rival of both files, or "none" (default: eager)')
    parts = commands.add_parser("stages", help="where a step of cpp goes, each stage beside its own floor")
    parts.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parts.add_argument("--seconds", type=float, default=0.5, help="per stage, about (default: 0.5)")
    commands.add_parser("check", help="a small grid against eager PyTorch; exits with 1 where a ratio is too low")
    return found


def run(options: argparse.Namespace) -> int:
    """Measures entry by entry; the file is complete up to the last entry whenever it is read."""
    if options.device == "cuda" and not torch.cuda.is_available():
        print("python -m benchmarks run --device cuda: torch sees no GPU; nothing was run", file=sys.stderr)
        return 1
    cpu.prepare_process(options.threads)
    machine = {**facts(options.threads), **(gpu.facts() if options.device == "cuda" else {})}
    rate = gpu.copy_rate() if options.device == "cuda" else cpu.copy_rate()
    cases = grid(options.grid, options.device)
    if options.device == "cuda":
        entries = gpu.entries([case for case in cases if re.search(options.only, case.label)], options, rate)
    else:
        settings = cpu.Settings(options.threads, options.seconds, options.compiled, options.autotuned)
        entries = cpu.entries(cases, options.only, settings, rate)
    document: results.Document = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "settings": {
            name: value for name, value in vars(options).items() if name not in ("command", "output", "update")
        },
        "copy_bytes_per_second": rate,
        "entries": [],
    }
    path = options.output or results.path_for(machine)
    if options.update:
        path, document = options.update, results.updated(options.update, document)
    elif options.only:
        document["settings"]["grid"] += f", only {options.only}"
    for entry in entries:
        results.add(document, entry)
        results.write(path, document)
        print(show.text(entry), flush=True)
    print(f"wrote {path}")
    return 0


def render(files: Sequence[Path]) -> int:
    newest = [path for kind in ("cpu", "gpu") if (path := results.newest(kind)) is not None]
    from benchmarks.pages import write  # needs matplotlib, which measuring does not

    for path in write([results.read(path) for path in files or newest]):
        print(f"wrote {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "run":
        return run(options)
    if options.command == "render":
        return render(options.files)
    if options.command == "compare":
        relative_to = None if options.relative_to == "none" else options.relative_to
        text, is_good = compare.report(
            results.read(options.first), results.read(options.second), options.limit, relative_to
        )
        print(text)
        return 0 if is_good else 1
    if options.command == "stages":
        cpu.prepare_process(options.threads)
        stages.run(options.seconds)
        return 0
    cpu.prepare_process(check.SETTINGS.threads)
    failed = check.run(rate=cpu.copy_rate())
    print("\n".join(failed) or "every ratio is above its limit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
