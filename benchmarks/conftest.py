"""Threads, the options of a benchmark run, what its JSON file says of the machine, and the table at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.machine import facts
from benchmarks.settings import Settings
from benchmarks.table import HEADER, Figure, rows

FIGURES = pytest.StashKey[list[Figure]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("icd_kernels benchmarks")
    group.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")
    group.addoption("--seconds", type=float, default=6.0, help="how long each rival is timed, about (default: 6)")
    group.addoption(
        "--batch", type=int, default=None, help="images per batch in place of each workload's own: a trial, no result"
    )


@pytest.fixture(scope="session", autouse=True)
def settings(pytestconfig: pytest.Config) -> Settings:
    """The run's settings, put in force."""
    threads, seconds, batch = (pytestconfig.getoption(name) for name in ("--threads", "--seconds", "--batch"))
    torch.set_num_threads(threads)
    return Settings(threads, seconds, batch)


@pytest.fixture(autouse=True)
def _kept_figure(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if benchmark.stats is not None:
        figure = Figure(benchmark.stats.stats.median, benchmark.extra_info)
        pytestconfig.stash.setdefault(FIGURES, []).append(figure)


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """What decides the figures, in place of the plugin's own facts, which name the machine."""
    return facts(config.getoption("--threads"))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if not figures:
        return
    terminalreporter.section("iCD loss, forward + backward, float32: median times and extra peak memory")
    for row in rows(figures):
        terminalreporter.line(f"{row[0]}; {row[1]}")
        cells = [f"{name.replace('`', '')} {cell}" for name, cell in zip(HEADER[2:], row[2:], strict=True) if cell]
        terminalreporter.line("    " + ", ".join(cells))
