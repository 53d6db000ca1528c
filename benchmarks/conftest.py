"""Threads, the options of a microbenchmark run, and what its JSON file says of the machine."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cpu import prepare_process
from benchmarks.machine import facts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("icd_kernels benchmarks")
    group.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")
    group.addoption("--seconds", type=float, default=2.0, help="how long each rival is timed, about (default: 2)")


@pytest.fixture(scope="session", autouse=True)
def _threads(pytestconfig: pytest.Config) -> None:
    prepare_process(pytestconfig.getoption("--threads"))


@pytest.fixture
def seconds(pytestconfig: pytest.Config) -> float:
    """How long a rival is timed, about."""
    return float(pytestconfig.getoption("--seconds"))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """What decides the figures, in place of the plugin's own facts, which name the machine."""
    return facts(config.getoption("--threads"))
