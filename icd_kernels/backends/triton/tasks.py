"""One launch, many kinds of task: programs draw tickets, wait for earlier tasks and announce their own end.

A program draws a ticket and does the task of that number. Tasks are numbered so that each waits only for tasks of
lower numbers. These have been drawn by programs that are already running, so they end whatever the hardware's
scheduler does, and a wait can never deadlock; no cooperative launch is needed. Every sum is made by one program in a
fixed order, so results do not depend on who arrives when. The last program of the launch sets all counters back to
zero, so that the launch can be repeated, from a CUDA graph too.

Order between programs: a barrier gathers the program's own writes, an acquire-release addition publishes them. The
reader looks until the count is there, then adds zero with acquire order until that addition itself returns the count:
an addition whose result nobody uses is dropped by the compiler, and its order with it. A barrier passes the order on to
all threads. tests/ahead_of_time asserts on the binaries that every wait ends in such an addition.
"""

import triton
import triton.language as tl


@triton.jit
def draw_task(counters):
    """The number of this program's task."""
    return tl.atomic_add(counters.p_all, 1, sem="relaxed", scope="gpu")


@triton.jit
def arrive(p_counter):
    """Publishes what this program wrote. Returns how many arrived before it."""
    tl.debug_barrier()
    return tl.atomic_add(p_counter, 1, sem="acq_rel", scope="gpu")


@triton.jit
def wait_for(p_counter, arrivals):
    """Returns once `arrivals` programs have arrived; what they wrote can then be read."""
    while tl.load(p_counter, volatile=True) < arrivals:
        pass
    while tl.atomic_add(p_counter, 0, sem="acquire", scope="gpu") < arrivals:
        pass
    tl.debug_barrier()


@triton.jit
def is_last_task(counters, first):
    """Whether every other task of the launch has finished: those from number `first` on, which wait for the rest."""
    is_last = arrive(counters.p_all + 1) == tl.num_programs(0) - first - 1
    tl.debug_barrier()
    return is_last


@triton.jit
def reset(counters, SLOT: tl.constexpr):
    """Sets every counter back to zero; for the last program of a launch."""
    tl.store(counters.p_all + tl.arange(0, SLOT), 0)
