"""What every test shares: hypothesis profiles, poisoned memory, and what the run says about itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch
from cases import CASES_RUN, torch_threads
from parts import Times, group_of, order
from said import SAID

from icd_kernels import available_backends
from icd_kernels.backends import BACKENDS, ENVIRONMENT_VARIABLE

hypothesis.settings.register_profile("local", deadline=None, max_examples=300)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=300, derandomize=True, database=None)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=3000)
hypothesis.settings.load_profile("ci" if "CI" in os.environ else "local")


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Every tensor that is allocated without a value, in C++ too, starts as NaN: an element left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session", autouse=True)
def _no_default_backend() -> Iterator[None]:
    """`backend="auto"` is decided by the package, not by the shell the tests were started from."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
        yield


THREADS = int(os.environ.get("ICD_KERNELS_TEST_THREADS", "1"))
"""One, because more only wait on small tensors; test_instruction_sets.py, which tests threads, asks for more."""


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tests of threading say how many they want."""
    with torch_threads(THREADS):
        yield


def pytest_report_header() -> list[str]:
    missing = [
        f"icd_kernels backend {backend.name!r} missing: {backend.missing}" for backend in BACKENDS if backend.missing
    ]
    return [f"icd_kernels backends: {', '.join(available_backends())}", *cpu_kernels(), *missing]


def cpu_kernels() -> list[str]:
    """What the numeric tests of `cpp` run on in this process; test_instruction_sets.py runs them on the others."""
    if "cpp" not in available_backends():
        return []
    return [f"icd_kernels cpu kernels: {torch.ops.icd_kernels.cpu_instruction_set()}, torch threads: {THREADS}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order(config, items)


class SideBySide:
    """For tests in several processes: prints a line for each file that is done, and gathers what processes report."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.times = Times()

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """Groups tests by `parts.group_of`: pytest 9.2 loses pytest-xdist's own groups, by marks, without a word."""
        if config.getoption("dist") != "loadgroup":
            return None
        from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

        class Groups(LoadScopeScheduling):  # type: ignore[misc]
            def _split_scope(self, nodeid: str) -> str:
                return group_of(nodeid)

        return Groups(config, log)

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.times.expect(ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot for what passes: files have lines."""
        if not report.passed:
            return None
        return ("passed", "", "") if report.when == "call" else ("", "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = self.times.add(report)
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        if line is not None and reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        CASES_RUN.update(output.get("cases", {}))
        SAID.extend(output.get("said", []))


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        config.pluginmanager.register(SideBySide(config))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # of a process beside others
    if output is not None:
        output.update(cases=dict(CASES_RUN), said=list(SAID))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if CASES_RUN:
        terminalreporter.section("property tests")
        for name, count in sorted(CASES_RUN.items()):
            terminalreporter.line(f"{name}: {count} cases")
        terminalreporter.line(f"property-test cases run: {CASES_RUN.total()}")
    if SAID:
        terminalreporter.section("what was run elsewhere")
        for line in sorted(SAID):
            terminalreporter.line(line)
