"""The order of the tests, their shares for processes that run side by side, and the time that each file took."""

from __future__ import annotations

import os
from collections import Counter, defaultdict

import pytest

SLOWEST = (
    "test_triton_interpreter.py",
    "test_ahead_of_time.py",
    "test_instruction_sets.py",
    "test_sanitizers.py",
    "test_cuda_emulated.py",
    "test_cuda_build.py",
    "test_cuda_loops.py",
    "test_training_processes.py",
    "test_train_example.py",
)
"""Files that take minutes. Of thorough tests these go first, so that no process ends with one of them alone."""

APART = ("test_triton_interpreter.py", "test_ahead_of_time.py", "test_instruction_sets.py")
"""Files whose parametrised tests share nothing: any process may take any."""


SHARE = "ICD_KERNELS_TEST_SHARE"
"""A variable of the environment: "2/5" runs the second of five equal shares of what is collected."""


def order(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick tests first. Side by side, thorough tests go slowest first, so that no process ends with one alone."""
    number, of = map(int, os.environ.get(SHARE, "1/1").split("/"))
    items[:] = items[number - 1 :: of]
    items.sort(key=lambda item: _rank(item, thorough_from=0 if _is_side_by_side(config) else 1000))


def _is_side_by_side(config: pytest.Config) -> bool:
    """Whether tests run in several processes. The environment does not tell: a test's own processes inherit it."""
    return hasattr(config, "workerinput")


def _rank(item: pytest.Item, thorough_from: int) -> int:
    place = SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST)
    if item.get_closest_marker("thorough") is None:
        return -place
    return thorough_from + (place if thorough_from == 0 else -place)


def group_of(test: str) -> str:
    """The group of a test, by its node id. One process runs a group: a file, or one set of parameters in a file."""
    path, _, rest = test.partition("::")
    name = path.rpartition("/")[2]
    return f"{name} {rest.partition('[')[2]}" if name in APART else name


class Times:
    """Counts and adds up, by file, what the tests report."""

    def __init__(self) -> None:
        self.expected: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.ended: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.told: set[str] = set()

    def expect(self, ids: list[str]) -> None:
        """The tests that will run."""
        self.expected = Counter(_file(test) for test in ids)

    def add(self, report: pytest.TestReport) -> str | None:
        """Takes a report in. Returns a line about the file where it was its last."""
        file = _file(report.nodeid)
        self.seconds[file] += report.duration
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.ended[file][report.outcome] += 1
        elif report.failed:
            self.ended[file]["failed"] += 1
        if report.when != "teardown" or self.ended[file].total() < self.expected[file] or file in self.told:
            return None
        self.told.add(file)
        return f"{self.seconds[file]:7.1f} s  {file}: {_counts(self.ended[file])}"


def _counts(ended: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.items()))


def _file(test: str) -> str:
    return test.partition("::")[0]
