"""A traced forward is the forward with one more argument (benchmarks/gpu_trace.py).

Run by tests/test_triton_host.py, with a driver that launches nothing.
"""

from __future__ import annotations

from test_native_launches import OPTIONS
from test_remembered_launches import LAUNCHES, OPERATORS, shown, tensor

from benchmarks import gpu_trace


def test_a_traced_forward() -> None:
    tensors = (tensor(2, 16, 4, 4), tensor(5, 16), None, tensor(2, 8, 4, 4), tensor(5, 8), None)

    def forward() -> None:
        OPERATORS.icd_loss(*tensors, *OPTIONS["spatial"], 2, 2, True, True)

    LAUNCHES.clear()
    forward()
    with gpu_trace.traced() as traces:
        forward()
    forward()
    assert [source.fn.__name__ for source, _ in LAUNCHES] == ["icd_loss_kernel", "traced_kernel", "icd_loss_kernel"]
    (trace,) = traces
    assert trace.tasks.shape == (sum(trace.counts), 3)
    plain, with_trace = (shown(args) for _, args in LAUNCHES[:2])
    assert with_trace[0] == trace.tasks.data_ptr()
    assert with_trace[7:] == plain[6:], "sizes and constants"
