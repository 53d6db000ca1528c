"""Every kernel compiles for every target without a GPU, fits its shared memory, and on sm_90 its registers.

A few configurations that hold every kernel and every Gram; tests/ahead_of_time/table.py compiles all of them.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'triton>=3.6'")

from icd_kernels.backends.triton.operators import interprets

if interprets():
    pytest.skip("needs Triton's compiler: TRITON_INTERPRET is set", allow_module_level=True)

from compiling import SHARED_LIMITS, TARGETS
from table import quick_configurations, table


def allowed_in_local_memory() -> tuple[int, int]:
    """Spills and bytes of stack on sm_90: none by the pinned version of Triton and older ones. The assembler of 3.9
    spills two registers of one kernel; no more than that may."""
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return (0, 0) if version <= (3, 7) else (2, 8)


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_kernel_compiles(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows: list[Any] = table(quick_configurations(), [target], lines.append)
    with capsys.disabled():
        print("", *lines, sep="\n")
    kernels = {name for _, name, _, _ in rows}
    launchers = {"icd_loss_kernel", "region_logits_kernel", "gram_kl_kernel"}
    assert kernels == launchers | {"backward_kernel", "fold_kernel", "scale_kernel"}
    for configuration, name, _, use in rows:
        assert use.shared <= SHARED_LIMITS[target], (configuration, name, use)
        if target == "sm_90":
            spills, stack = allowed_in_local_memory()
            assert use.spills <= spills, (configuration, name, use)
            assert use.stack <= stack, (configuration, name, use)
