"""Two processes give what one gives with the whole batch, and sharded arguments are refused by name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import Case
from torch import nn

from icd_kernels import ICDLoss
from icd_kernels.distributed import GatheredICDLoss, full_head, gather_batch

WORKER = Path(__file__).parent / "support" / "distributed_worker.py"
ROUNDING = 1e-14
"""Of float64 sums of a few hundred numbers, relative to the largest element."""

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without torch.distributed and gloo"
)

Found = dict[str, list[Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two processes found, by check."""
    results = tmp_path_factory.mktemp("distributed") / "results.json"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--local-addr", "127.0.0.1"]
    ended = subprocess.run(
        [sys.executable, *launcher, WORKER, results],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=120,  # the processes themselves end sooner
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(results.read_text())


def largest(errors: list[Any]) -> float:
    assert len(errors) == 2
    return max(errors)


@needs_gloo
class TestTwoProcesses:
    @pytest.mark.parametrize("loss", ["class", "spatial", "icd-kd", "icd-dkd", "icd-nkd"])
    def test_ddp(self, found: Found, loss: str) -> None:
        """The mean over equal shards needs no change to the loss."""
        assert largest(found[f"ddp {loss}"]) < ROUNDING

    def test_a_batch_by_batch_gram_needs_gathering(self, found: Found) -> None:
        assert min(found["ddp sample"]) > 0.01

    @pytest.mark.parametrize(
        "case", ["mean", "sum", "none", "reference", "nested", "equal_batches", "unequal", "compiled"]
    )
    def test_gathered_gradient(self, found: Found, case: str) -> None:
        """Averaged by DDP, it is that of one process with the whole batch: no factor is left to apply."""
        assert largest(found[f"gathered {case}"]) < ROUNDING

    def test_gathered_value(self, found: Found) -> None:
        assert largest(found["gathered value"]) < ROUNDING

    @pytest.mark.parametrize("check", ["summed gradient", "second derivative", "no rows"])
    def test_gather_batch(self, found: Found, check: str) -> None:
        assert largest(found[check]) < ROUNDING

    def test_rows_of_other_sizes(self, found: Found) -> None:
        for message in found["other rows"]:
            assert re.match(r"ValueError: tensor must have rows of one size.*\(3, 4\)", message)

    def test_a_group_of_one_and_one_without_this_process(self, found: Found) -> None:
        alone, left_out = found["other group"]
        assert alone == "nothing, but True"
        assert left_out.startswith("ValueError: group must contain this process")

    @pytest.mark.parametrize("loss", ["class", "icd-kd"])
    def test_full_head_of_fsdp(self, found: Found, loss: str) -> None:
        """The head's gradient through the loss is averaged as that through the network."""
        assert largest(found[f"fsdp {loss}"]) < ROUNDING

    @pytest.mark.parametrize(
        "name", ["student_features", "student_weight", "student_bias", "teacher_weight", "teacher_logits"]
    )
    def test_a_sharded_argument_is_refused(self, found: Found, name: str) -> None:
        for message in found[name]:
            assert re.match(rf"TypeError: {name} must be a plain .*DTensor.*full_head.*{name}\.full_tensor", message)

    def test_a_sharded_head_is_refused(self, found: Found) -> None:
        for message in found["sharded head"]:
            assert re.match(r"TypeError: student_weight must be a plain .*DTensor.*full_head", message)

    def test_a_part_of_a_flattened_head_is_refused(self, found: Found) -> None:
        for message in found["flattened head"]:
            assert re.match(r"ValueError: student_weight must have shape \(K, C\), got \(\d+,\)", message)


class TestOneProcess:
    """Without a process group there is nothing to gather."""

    def test_gather_batch(self) -> None:
        rows = torch.ones(3, 2, requires_grad=True)
        assert gather_batch(rows) is rows
        assert gather_batch(rows, equal_batches=True) is rows

    @pytest.mark.parametrize("preset", ["paper", "released"])
    def test_gathered_loss(self, preset: str) -> None:
        student, weight, bias, *teacher, teacher_bias = Case().tensors()
        arguments = (student, (weight, bias), teacher[0], (teacher[1], teacher_bias))
        gathered, plain = (getattr(kind, preset)(gram="sample", weight=3.0) for kind in (GatheredICDLoss, ICDLoss))
        assert isinstance(gathered, GatheredICDLoss)
        assert gathered(*arguments) == plain(*arguments)
        assert gathered.extra_repr() == plain.extra_repr()

    def test_full_head(self) -> None:
        head = nn.Linear(3, 4)
        assert full_head(head) == (head.weight, head.bias)
        assert full_head((head.weight, None)) == (head.weight, None)

    def test_errors(self) -> None:
        with pytest.raises(TypeError, match=r"tensor .*shape \(B, \.\.\.\), got list"):
            gather_batch([1.0])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"tensor .*shape \(B, \.\.\.\), got \(\)"):
            gather_batch(torch.ones(()))
        with pytest.raises(ValueError, match=r"gram .*'batch'"):
            GatheredICDLoss(gram="batch")
        with pytest.raises(TypeError, match=r"my_head must be .*str"):
            full_head("fc", "my_head")  # type: ignore[arg-type]
