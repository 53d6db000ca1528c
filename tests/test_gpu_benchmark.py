"""The parts of the GPU benchmark that need no GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu
from benchmarks.workloads import WORKLOADS


def test_bytes_are_those_of_the_tensors() -> None:
    workload = WORKLOADS[0].with_batch(2)
    inputs = workload.inputs()
    expected = sum(tensor.nbytes for tensor in inputs) + sum(leaf.nbytes for leaf in inputs.leaves())
    assert gpu.bytes_moved(workload, 4) == expected


@pytest.mark.parametrize(("set_bytes", "count"), [(2**20, 16), (20 * 2**20, 5), (2**34, 2)])
def test_inputs_rotate_beyond_the_cache(set_bytes: int, count: int) -> None:
    assert gpu.rotations(set_bytes, 50 * 2**20) == count


def test_rivals_are_named_apart() -> None:
    case = gpu.Case(WORKLOADS[0], "float32", "class")
    names = [rival.name for rival in gpu.rivals_of(case, compiled="CIFAR", autotuned="float32, class$")]
    assert {"eager", "compiled", "compiled max-autotune"} <= set(names)
    assert len(set(names)) == len(names)
    assert [rival.name for rival in gpu.rivals_of(case, "CUB", "CUB")] == names[:-2]


def test_an_entry_reads() -> None:
    rivals = {
        "triton": {"seconds": 3e-5, "forward_seconds": 2e-5, "host_seconds": 1e-4},
        "eager": {"out_of_memory": "tried to allocate 20 GiB"},
        "compiled": {"wrong": "loss: error"},
    }
    entry = {"workload": "W", "precision": "tf32", "form": "class", "floor_seconds": 2e-5, "rivals": rivals}
    assert gpu.lines(entry)[1].strip() == "triton: 30.0 us (1.50x floor), forward 20.0 us, host 100 us"
    assert gpu.lines(entry)[2].endswith("out of memory: tried to allocate 20 GiB")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        gpu.main([])
    assert exit_status.value.code == 1
    assert "needs a CUDA GPU" in capsys.readouterr().err
