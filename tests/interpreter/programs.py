"""Running Triton's interpreter faster than it does itself, in any order of programs, and several at a time.

The interpreter runs programs one after another, so that the last to arrive is always the same, and prepares the
language anew for every helper a kernel calls. Here it is prepared once for a launch; tasks of one kind, none of which
waits for another, can be dealt in a shuffled order; and programs can run in threads, where waiting is real. Integers
are checked for overflow only where a test asks for it: that is half of the interpreter's time.
"""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from icd_kernels.backends.triton import counters, kernels, tasks
from icd_kernels.backends.triton.plan_parts import ceil_div
from icd_kernels.problem import SAMPLE


@dataclass
class Run:
    """How launches are made, and those that were: kernel and number of programs."""

    seed: int | None = None
    threads: int = 1
    launches: list[tuple[str, int]] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    """Ticket to task of the launch that runs."""


@contextmanager
def interpreted(seed: int | None = None, threads: int = 1, *, checks_overflow: bool = False) -> Iterator[Run]:
    """Launches within run by these rules; afterwards every counter must be zero again."""
    run = Run(seed, threads)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", _executor(run))
        monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", lambda self, *a, **k: self.rewrite()(*a, **k))
        monkeypatch.setattr(kernels, "draw_task", _dealer(tasks.draw_task, run))
        monkeypatch.setattr(interpreter, "_get_np_dtype", _numpy_dtype)
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=checks_overflow))
        yield run
    assert_counters_are_zero()


def _numpy_dtype(dtype: Any, by_interpreter: Any = interpreter._get_np_dtype) -> Any:
    """The interpreter's answer, kept for each type: the interpreter makes a table for every question."""
    number = dtype.scalar if isinstance(dtype, tl.block_type) else dtype
    if isinstance(number, tl.pointer_type):
        return by_interpreter(number)
    if number not in _NUMPY_DTYPES:
        _NUMPY_DTYPES[number] = by_interpreter(number)
    return _NUMPY_DTYPES[number]


_NUMPY_DTYPES: dict[Any, Any] = {}


def assert_counters_are_zero() -> None:
    for slots in counters._DEVICES.values():
        assert not slots.table.any()


def _dealer(draw_task: Any, run: Run) -> Callable[[Any], Any]:
    """draw_task, with tickets renamed."""

    def deal(slot: Any) -> Any:
        ticket = draw_task(slot)
        if run.seed is None:
            return ticket
        return tl.full((), run.numbers[int(ticket.handle.data.item())], tl.int32)

    return deal


def _executor(run: Run) -> Callable[..., None]:
    """`GridExecutor.__call__` of the interpreter, for grids of one dimension."""

    def execute(self: Any, *args_dev: Any, **kwargs: Any) -> None:
        names = inspect.getfullargspec(self.fn).args
        args_hst, kwargs_hst = self._init_args_hst(args_dev, {k: v for k, v in kwargs.items() if k in names})
        (programs,) = self.grid
        run.launches.append((self.fn.__name__, programs))
        given = inspect.getcallargs(self.fn, *args_hst, **kwargs_hst)
        run.numbers = _shuffled(self.fn.__name__, given, programs, run.seed)
        scopes = [interpreter._patch_lang(self.fn), interpreter._patch_lang(tl.standard.cdiv.fn)]
        try:
            args = {k: v if k in self.constexprs else interpreter._implicit_cvt(v) for k, v in given.items()}
            interpreter.interpreter_builder.set_grid_dim(programs, 1, 1)
            _run_programs(lambda: self.fn(**args), programs, run.threads)
        finally:
            for scope in reversed(scopes):
                scope.restore()

    return execute


def _with_room() -> Callable[[Callable[[], None]], None]:
    """A function that calls another from a frame of 48 KB.

    CPython since 3.11 keeps frames in chunks of 16 KB, and maps and unmaps one at every call across the end of the
    last: half a million times in a gradcheck, a third of its time. A frame that fits into no chunk gets a larger one,
    and the frames behind it the rest.
    """
    names = " = ".join(f"unused_{number}" for number in range(6000))
    scope: dict[str, Any] = {}
    exec(f"def call(program):\n    if program is None:\n        {names} = 0\n    program()", scope)
    return scope["call"]


_call = _with_room()


def _run_programs(program: Callable[[], None], count: int, threads: int) -> None:
    if threads == 1:
        for index in range(count):
            interpreter.interpreter_builder.set_grid_idx(index, 0, 0)
            _call(program)
        return
    left, lock = [count], threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
            try:
                program()
            except BaseException as error:
                errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.setswitchinterval(interval)
    if errors:
        raise errors[0]


def _shuffled(kernel: str, given: dict[str, Any], programs: int, seed: int | None) -> dict[int, int]:
    """A permutation of task numbers within every stretch of tasks that do not wait for each other."""
    generator = random.Random(seed)
    numbers: list[int] = []
    for count in _stretches(kernel, given, programs):
        stretch = list(range(len(numbers), len(numbers) + count))
        generator.shuffle(stretch)
        numbers += stretch
    assert len(numbers) == programs
    return dict(enumerate(numbers))


def _stretches(kernel: str, given: dict[str, Any], programs: int) -> list[int]:
    if "batch" not in given or kernel in ("pool_kernel", "project_kernel"):  # nothing waits within the launch
        return [programs]
    if "job" in given:
        first = programs - _unpool_tasks(given)
        return [first, programs - first]
    networks = [name for name in ("network", "student", "teacher") if hasattr(given.get(name), "p_pooled")]
    kinds = () if kernel == "gram_kernel" else (_pool_tasks, _project_tasks)
    counts = [sum(count(given, name) for name in networks) for count in kinds]
    rest = programs - sum(counts)
    form = given.get("FORM")
    if form is not None and form.GRAM == SAMPLE and "temperature" in given:
        prepared = given["batch"] * form.CELLS
        steps = 1 + given["wants_gradient"]
        return [*counts, prepared, *[(rest - prepared) // steps] * steps]
    return [*counts, rest]


def _unpool_tasks(given: dict[str, Any]) -> int:
    job, constants = given["job"], given["CONSTANTS"]
    return 0 if job.p_features is None else given["batch"] * ceil_div(job.channels, constants.CHANNEL_BLOCK)


def _pool_tasks(given: dict[str, Any], name: str) -> int:
    network, constants = given[name], given[name.upper()]
    blocks = ceil_div(constants.CELLS, constants.CELL_BLOCK) * ceil_div(network.channels, constants.CHANNEL_BLOCK)
    return int(given["batch"] * blocks)


def _project_tasks(given: dict[str, Any], name: str) -> int:
    network, constants, prefix = given[name], given[name.upper()], "" if name == "network" else f"{name}_"
    group_images, splits = given[f"{prefix}group" if prefix else "group_images"], given[f"{prefix}splits"]
    tiles = ceil_div(group_images * constants.CELLS, constants.ROW_BLOCK) * ceil_div(
        network.classes, constants.CLASS_BLOCK
    )
    return int(ceil_div(given["batch"], group_images) * tiles * splits)


def bits(*tensors: torch.Tensor) -> list[bytes]:
    """What tensors hold, to be compared to the bit."""
    return [tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
