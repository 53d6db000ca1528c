"""When every task of a forward was drawn and when it ended, by the GPU's own clock, and on which multiprocessor.

What a model of the launch is held against. A task's time includes its waits, which end with the last task that it waits
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer, smid

from icd_kernels.backends.triton import icd_loss
from icd_kernels.backends.triton.kernels import BATCH_NUMBERS, icd_loss_task
from icd_kernels.backends.triton.launch import Launch
from icd_kernels.backends.triton.plan import ICDLossPlan
from icd_kernels.backends.triton.tasks import draw_task

KINDS = ("pool teacher", "pool student", "project teacher", "project student", "Gram")


@triton.jit(do_not_specialize=BATCH_NUMBERS)
def traced_kernel(
    p_trace, student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
    teacher_group, teacher_splits, wants_gradient, temperature: tl.float64, STUDENT: tl.constexpr,
    TEACHER: tl.constexpr, FORM: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """`icd_loss_kernel`, writing (drawn, ended, multiprocessor) of every task to p_trace (tasks, 3)."""
    task = draw_task(counters)
    drawn = globaltimer()
    icd_loss_task(
        task, student, teacher, student_logits, teacher_logits, work, counters, batch, student_group, student_splits,
        teacher_group, teacher_splits, wants_gradient, temperature, STUDENT, TEACHER, FORM, SLOT,
    )  # fmt: skip
    tl.debug_barrier()
    tl.store(p_trace + 3 * task, drawn)
    tl.store(p_trace + 3 * task + 1, globaltimer())
    tl.store(p_trace + 3 * task + 2, smid().to(tl.int64))


class Trace(NamedTuple):
    """One forward: how many tasks of each of :data:`KINDS`, and (drawn, ended, multiprocessor) of each, int64."""

    counts: tuple[int, ...]
    tasks: Tensor

    def summary(self) -> dict[str, Any]:
        """For every kind of task, in microseconds from the first draw: when the first was drawn and the last ended, and
        the median and longest time of one."""
        times = (self.tasks[:, :2].cpu() - self.tasks[:, 0].min().cpu()).double() / 1e3
        found: dict[str, Any] = {}
        for kind, part in zip(KINDS, times.split(list(self.counts)), strict=True):
            lasting = part[:, 1] - part[:, 0]
            found[kind] = {
                "tasks": len(part),
                "first_drawn": round(float(part[:, 0].min()), 2),
                "last_ended": round(float(part[:, 1].max()), 2),
                "median": round(float(lasting.median()), 2),
                "longest": round(float(lasting.max()), 2),
            }
        return found

    def rows(self) -> list[list[int]]:
        """Every task in its order: nanoseconds from the first draw to its own, its nanoseconds, its multiprocessor."""
        drawn, ended, multiprocessor = self.tasks.cpu().unbind(1)
        return torch.stack([drawn - drawn.min(), ended - drawn, multiprocessor], 1).tolist()


@contextmanager
def traced() -> Iterator[list[Trace]]:
    """Forwards of one launch leave a trace each in the list."""
    traces: list[Trace] = []
    launcher: Any = icd_loss
    planned: Callable[..., ICDLossPlan] = launcher.plan_icd_loss

    def plan(*arguments: Any) -> ICDLossPlan:
        found = planned(*arguments)
        (launch,) = found.launches
        counts = (
            found.teacher.pool_tasks,
            found.student.pool_tasks,
            found.teacher.project_tasks,
            found.student.project_tasks,
            found.gram.tasks,
        )
        by_trace: Any = partial(_launch, launch, counts, traces)
        return found._replace(launches=(by_trace,))

    launcher.plan_icd_loss = plan
    try:
        yield traces
    finally:
        launcher.plan_icd_loss = planned


def _launch(
    launch: Launch,
    counts: tuple[int, ...],
    traces: list[Trace],
    device: torch.device,
    arguments: Callable[..., tuple[Any, ...]],
    given: tuple[Any, ...],
    allocated: tuple[Any, ...],
    stream: int | None = None,
    last: tuple[Any, ...] = (),
) -> None:
    """`launch` by the traced kernel."""
    tasks = torch.empty((launch.programs, 3), dtype=torch.int64, device=device)
    by_trace = copy(launch)
    by_trace.kernel, by_trace._runners = traced_kernel, {}
    by_trace(device, lambda *tensors: (tasks, *arguments(*tensors)), given, (*allocated, tasks), stream, last)
    traces.append(Trace(counts, tasks))
