"""Every kernel compiles for every target without a GPU, and its binary is what was meant.

A few configurations that hold every kernel and every Gram; tests/ahead_of_time/table.py compiles all of them.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'triton>=3.6'")

from icd_kernels.backends.triton.operators import interprets

if interprets():
    pytest.skip("needs Triton's compiler: TRITON_INTERPRET is set", allow_module_level=True)

import table as documented
from binary import Instruction, _polls, read
from compiling import SHARED_LIMITS, TARGETS, identity_of, launches_of, timed
from table import CUB, Configuration, Row, quick_configurations, table

from icd_kernels.backends.triton import configs

MOST_INSTRUCTIONS_PER_PAIR = 22
"""A limit for both passes of the exact class sum together, for each (row, column) pair of both networks."""


def allowed_spills(target: str, precision: str) -> int:
    """A limit: on sm_90 none in float32 and two in the spatial forward of halves, on sm_80 two. 3.9's assembler spills
    up to 40, outside of loops."""
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    return (2 if precision == "bfloat16" or target == "sm_80" else 0) + (0 if version <= (3, 7) else 40)


@pytest.fixture(scope="module", params=list(TARGETS))
def rows(request: pytest.FixtureRequest) -> list[Row]:
    """The kernels of one target, compiled once."""
    lines: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = table(quick_configurations(), [request.param], lines.append)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n")
    return found


@pytest.mark.thorough
def test_every_kernel_compiles_and_fits(rows: list[Row]) -> None:
    launchers = {"icd_loss_kernel", "region_logits_kernel", "gram_kl_kernel"}
    pooling = {"region_features_kernel", "region_features_backward_kernel"}
    assert {row.kernel for row in rows} == launchers | pooling | {"backward_kernel", "fold_kernel", "scale_kernel"}
    for row in rows:
        assert row.shared <= SHARED_LIMITS[row.target], row
        if row.target in ("sm_80", "sm_90"):
            assert row.spills <= allowed_spills(row.target, row.configuration.precision), row
            assert row.binary is not None
            assert not any(loop.spills for loop in row.binary.loops if loop.products or loop.exponentials), row


@pytest.mark.thorough
def test_every_wait_acquires_before_anything_is_read(rows: list[Row]) -> None:
    """What another program wrote is read only after an acquire that stands in the binary."""
    waiting = {"icd_loss_kernel", "region_logits_kernel", "backward_kernel"}
    for row in rows:
        if row.binary is not None:
            assert row.binary.unordered_polls == 0, row
            assert row.binary.polls > 0 or row.kernel not in waiting, row


@pytest.mark.thorough
def test_no_operand_of_a_pipelined_product_conflicts(rows: list[Row]) -> None:
    for row in rows:
        assert row.binary is None or row.binary.conflicting == 0, row


@pytest.mark.thorough
def test_float32_maps_are_copied_sixteen_bytes_at_a_time(rows: list[Row]) -> None:
    """The forward's asynchronous copies of contiguous maps of 28 x 28 pixels, and of rows of logits for any K."""
    for row in rows:
        if row.binary is not None and row.kernel == "icd_loss_kernel" and row.configuration.workload == "CUB-200":
            assert row.binary.copies, row
            assert min(row.binary.copies) == 16, row


@pytest.mark.thorough
def test_a_pair_of_the_class_gram_takes_few_instructions(rows: list[Row]) -> None:
    """Row pass and column pass together; a class form up to 255 classes has no other sums."""
    for row in rows:
        if row.target == "sm_90" and row.configuration.form == "paper class" and row.kernel == "icd_loss_kernel":
            assert row.binary is not None
            passes = row.binary.instructions_per_pair()
            assert len(passes) >= 2, row
            assert sum(sorted(passes.values())[:2]) <= MOST_INSTRUCTIONS_PER_PAIR, (row, passes)


@pytest.mark.parametrize("form", ["paper class", "released spatial", "sample l2"])
def test_the_batch_compiles_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch, an epoch's last one, one image, and a validation batch without a gradient share one kernel."""
    sources: dict[str, set[tuple[str, str]]] = {}
    for batch in (64, 50, 37, 1):
        monkeypatch.setitem(documented.WORKLOADS, "CUB-200", replace(CUB, batch=batch))
        for launch in Configuration("CUB-200", form, "float32").launches("sm_90"):
            sources.setdefault(launch.name, set()).add(identity_of(launch, TARGETS["sm_90"]))
    assert len(sources["icd_loss_kernel"]) == 1
    backward = {"fused backward", "backward of region_logits"}
    assert len(sources["backward_kernel"]) <= len(backward)


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["paper class", "released spatial"])
def test_a_chain_of_three_launches(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins while the one before it ends, and waits for it; none spills."""
    monkeypatch.setattr(configs, "LAUNCHES", 3)
    chain = Configuration("CUB-200", form, "float32").launches("sm_90")[3:6]
    assert [launch.name for launch in chain] == ["pool_kernel", "project_kernel", "gram_kernel"]
    for number, launch in enumerate(chain):
        kernel, _ = timed(launch, TARGETS["sm_90"])
        binary = read(kernel)
        assert ("launch_pdl" in launch.options) == ("griddepcontrol.wait" in kernel.asm["ptx"]) == (number > 0)
        assert ("griddepcontrol.launch_dependents" in kernel.asm["ptx"]) == (number < 2)
        assert (binary.spills, binary.unordered_polls, binary.conflicting) == (0, 0, 0)


def test_a_wait_without_an_acquire_is_found() -> None:
    poll = Instruction("LDG.E.STRONG.SYS R2, [R4.64]", "tasks")
    acquire = Instruction("CCTL.IVALL", "tasks")
    read = Instruction("@P0 LDG.E.128 R8, [R6.64]", "logits")
    assert _polls([poll, acquire, read]) == (1, 0)
    assert _polls([poll, read, acquire]) == (1, 1)
    assert _polls([poll]) == (1, 1)


def test_launches_are_those_of_real_calls() -> None:
    names = [launch.name for launch in Configuration("CUB-200", "paper class", "float32").launches("sm_90")]
    assert names[:3] == ["icd_loss_kernel", "icd_loss_kernel", "backward_kernel"]
    assert launches_of(lambda: None) == []
