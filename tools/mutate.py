"""Tests that can fail: small mutations of the code, each tried against the tests that should see it.

    python tools/mutate.py [--count 100] [--seed 0] [--only PATTERN] [--skip N] [--quick] [--list]

Draws changes of a sign, a bound, a constant, a condition or a dropped line over the package, the example's state and
the C++ sources, makes each in a copy of what is committed, and runs the tests of that part until one fails. Prints a
line for each, and those that survived again at the end. A survivor wants a test, or a reason in EQUIVALENT.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900.0
"""Seconds that the tests of a mutation may take; one that hangs them is seen."""

NO_TESTS = 5  # of pytest
PYTEST = ("-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore")

SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "and": "or", "or": "and", "True": "False", "False": "True", "min": "max", "max": "min",
    "0": "1", "1": "2", "2": "3", "&&": "||", "||": "&&", "+=": "-=", "-=": "+=", "++": "--", "0.5": "0.25",
}  # fmt: skip

GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "core": (
        (
            "icd_kernels/[!d]*.py",
            "icd_kernels/backends/reference.py",
            "icd_kernels/backends/linear_reference.py",
            "icd_kernels/backends/base.py",
            "icd_kernels/backends/__init__.py",
        ),
        (
            *("tests/test_definition.py", "tests/test_errors.py", "tests/test_module.py", "tests/test_operators.py"),
            *(
                "tests/test_gradients.py",
                "tests/test_heads.py",
                "tests/test_region_features.py",
                "tests/test_dtypes.py",
            ),
            *("tests/test_linear_class.py", "tests/test_transforms.py"),
        ),
    ),
    "distributed": (("icd_kernels/distributed.py",), ("tests/test_distributed.py",)),
    "objectives": (("icd_kernels/objectives/*.py",), ("tests/objectives", "tests/test_errors.py")),
    "tap": (("icd_kernels/tap/*.py",), ("tests/tap",)),
    "state": (
        tuple(
            f"training/{name}.py" for name in ("state", "checkpoint", "students", "given_teacher", "schedule", "data")
        ),
        ("tests/example",),
    ),
    "csrc": (
        ("csrc/common/*.h", "csrc/cpu/*.h", "csrc/cpu/*.cpp", "csrc/operators.h"),
        (
            *("tests/test_definition.py", "tests/test_linear_class.py", "tests/test_symmetric_class.py"),
            *(
                "tests/test_gradients.py",
                "tests/test_hard_numbers.py",
                "tests/test_workloads.py",
                "tests/test_dtypes.py",
            ),
            *("tests/test_region_features.py", "tests/test_operators.py", "tests/test_threads.py"),
            "tests/objectives/test_row_losses.py",
        ),
    ),
}
"""Files, and the tests that should see a change of them, the quickest first."""

SHARES = {"core": 22, "distributed": 3, "objectives": 20, "tap": 10, "state": 20, "csrc": 25}
"""Of a hundred."""

EQUIVALENT = {
    "icd_kernels/geometry.py: if side % scale == 0:": "tiling windows: a view, not loops; the same",
    "csrc/cpu/cell_size.h: st += x * y;": "a guess for speed: float64 sums are right either way",
    "csrc/cpu/cell_size.h: .exponent = total - total == 0 ? most * most / tau : total,": "shifts too early: slower",
    "icd_kernels/backends/linear_reference.py: for side in (x >= 0, x < 0):": "a row of 0 has the same sums on both",
}
"""Survivors that change nothing a caller can see: "file: line, stripped" and the reason."""


class Mutation(NamedTuple):
    """One change of one line."""

    group: str
    file: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1}: {self.before.strip()}  →  {self.after.strip() or '(dropped)'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a pattern of files or groups")
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out so many of the first, which an earlier run tried"
    )
    parser.add_argument("--quick", action="store_true", help="leave out the tests that are marked thorough")
    parser.add_argument("--list", action="store_true", help="print the mutations, and run none")
    options = parser.parse_args()
    drawn = [each for each in draw(options.count, options.seed) if re.search(options.only, f"{each.group} {each.file}")]
    drawn = drawn[options.skip :]
    if options.list:
        print(*drawn, sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        prepare(copy)
        survived = [each for each in drawn if not is_killed(each, copy, is_quick=options.quick)]
    print(f"\n{len(drawn)} tried, {len(drawn) - len(survived)} killed, {len(survived)} survived")
    unexplained = 0
    for each in survived:
        reason = EQUIVALENT.get(f"{each.file}: {each.before.strip()}")
        unexplained += reason is None
        print(f"survived: {each}" + ("" if reason is None else f"\n    {reason}"))
    return min(1, unexplained)


def draw(count: int, seed: int) -> list[Mutation]:
    """So many mutations, the same for the same seed and sources, by SHARES."""
    draws = random.Random(seed)
    drawn: list[Mutation] = []
    for group, share in SHARES.items():
        patterns, _ = GROUPS[group]
        files = sorted({path for pattern in patterns for path in ROOT.glob(pattern)})
        found = [mutation for path in files for mutation in mutations(group, path)]
        drawn += draws.sample(found, round(count * share / sum(SHARES.values())))
    return drawn


def mutations(group: str, path: Path) -> Iterator[Mutation]:
    """Every change that may be drawn of a file."""
    text = path.read_text()
    lines = text.splitlines()
    tokens = python_tokens(text) if path.suffix == ".py" else cpp_tokens(lines)
    for row, start, token in tokens:
        before = lines[row]
        if token in SWAPS and not is_declaration(before):
            after = before[:start] + SWAPS[token] + before[start + len(token) :]
            yield Mutation(group, str(path.relative_to(ROOT)), row, before, after)
    for row, line in enumerate(lines):
        if re.fullmatch(r"\s+[\w.\[\]]+ (\+|-|\*|/)?= .*[^({,\[]|\s+\w[\w.]*\(.*\);?", line) and is_whole(line):
            after = re.match(r"\s*", line)[0] + ("pass" if path.suffix == ".py" else ";")  # type: ignore[index]
            yield Mutation(group, str(path.relative_to(ROOT)), row, line, after)


def is_declaration(line: str) -> bool:
    """Imports, signatures and annotations: a change of these is no change of what is computed."""
    return bool(re.match(r"\s*(from |import |def |class |@|#|//|\*|template|using |namespace |static_assert)", line))


def is_whole(line: str) -> bool:
    """Whether every bracket that a line opens it closes."""
    return all(line.count(a) == line.count(b) for a, b in ("()", "[]", "{}"))


def python_tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Row, column and text of operators, names and numbers."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_unpacking = token.string in ("*", "/") and token.line[token.start[1] - 1 : token.start[1]] != " "
        if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER) and not is_unpacking:
            yield token.start[0] - 1, token.start[1], token.string


def cpp_tokens(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """Likewise, outside of comments, strings, preprocessor lines and template brackets."""
    for row, line in enumerate(lines):
        code = re.sub(r'"[^"]*"', lambda found: " " * len(found[0]), line.split("//")[0])
        if re.match(r"\s*(#|\*|/\*)", code) or "template" in code or "operator" in code:
            continue
        pattern = (
            r"(?<=\s)(?:<=|>=|==|!=|&&|\|\||\+=|-=|[+\-*/<>])(?=\s)|\b(?:min|max|true|false)\b|(?<![\w.])[012](?![\w.])"
        )
        for found in re.finditer(pattern, code):
            yield row, found.start(), found[0]


def prepare(copy: Path) -> None:
    """The committed sources, with the extension as it is built here."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x", "-C", str(copy)], input=archive, check=True)
    for built in (ROOT / "icd_kernels").glob("_C*.so"):
        shutil.copy(built, copy / "icd_kernels")
    if (ROOT / "build").is_dir():
        for objects in (ROOT / "build").glob("temp*"):
            shutil.copytree(objects, copy / "build" / objects.name)


def is_killed(mutation: Mutation, copy: Path, *, is_quick: bool) -> bool:
    """Makes the change, runs the tests, and takes it back; prints what became of it."""
    path, start = copy / mutation.file, time.perf_counter()
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    lines[mutation.line] = mutation.after + "\n"
    path.write_text("".join(lines))
    try:
        by = killer(mutation, copy, is_quick=is_quick)
    finally:
        path.write_text(text)
    print(f"{'killed' if by else 'SURVIVED'} {time.perf_counter() - start:.0f} s {mutation}  {by}", flush=True)
    return bool(by)


def killer(mutation: Mutation, copy: Path, *, is_quick: bool) -> str:
    """What saw the mutation: the build, a test or the clock; empty where nothing did."""
    if mutation.group == "csrc":
        built = run([sys.executable, "setup.py", "build_ext", "--inplace"], copy)
        if built is None or built.returncode:
            return "the build"
    quick = [("not thorough", tests) for tests in GROUPS[mutation.group][1]]
    thorough = [] if is_quick else [("thorough", tests) for _, tests in quick]
    for marks, tests in (*quick, *thorough):
        ended = run([sys.executable, "-m", "pytest", "-x", "-q", *PYTEST, "-m", marks, tests], copy)
        if ended is None:
            return f"{tests}, which took longer than {LIMIT:.0f} s"
        if ended.returncode not in (0, NO_TESTS):
            failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
            return failed[0] if failed else tests
    return ""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str] | None:
    """In the copy, which is what is imported; None where it takes too long."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "CI": "1",
        "ICD_KERNELS_EXTENSION": "1",
        "ICD_KERNELS_CUDA": "0",
    }
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main())
