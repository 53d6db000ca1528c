"""What the Triton backend does before a launch: the version it accepts, its options, its plans, its counters."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from icd_kernels import icd_loss
from icd_kernels.backends import triton as package
from icd_kernels.backends.triton import TRITON

needs_triton = pytest.mark.skipif(TRITON.missing is not None, reason=f"backend 'triton' is missing: {TRITON.missing}")


def part(name: str) -> Any:
    """A module of the backend; those with kernels need Triton."""
    return importlib.import_module(f"icd_kernels.backends.triton.{name}")


@pytest.mark.parametrize(
    ("found", "accepted"), [("3.5.1", False), ("2.3.0", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0", True)]
)
def test_versions(monkeypatch: pytest.MonkeyPatch, found: str, accepted: bool) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: object())
    monkeypatch.setattr(package, "_triton_version", lambda: found)
    missing = package._missing()
    assert (missing is None) == accepted
    assert accepted or (missing is not None and found in missing and "3.6" in missing)


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    assert "pip install" in str(package._missing())


def test_a_named_request_on_the_cpu_says_why() -> None:
    features, weight = torch.randn(1, 2, 2, 2), torch.randn(3, 2)
    with pytest.raises((ValueError, RuntimeError), match="triton"):
        icd_loss(features, weight, features, weight, backend="triton")


@needs_triton
class TestLaunch:
    def test_tuning_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        configs = part("configs")
        monkeypatch.delenv(configs.AUTOTUNE_VARIABLE, raising=False)
        assert not configs.autotunes()
        monkeypatch.setenv(configs.AUTOTUNE_VARIABLE, "1")
        assert configs.autotunes()
        assert configs.AUTOTUNE_CHOICES[0] == (configs.WARPS, configs.STAGES)

    def test_the_limit_of_registers_is_only_for_nvidia(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launch = part("launch")
        assert launch.compile_options(4, 3, 168)["maxnreg"] == 168
        assert "maxnreg" not in launch.compile_options(4, 3, None)
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert "maxnreg" not in launch.compile_options(4, 3, 168)

    def test_the_class_sum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        configs = part("configs")
        monkeypatch.delenv(configs.CLASS_SUM_VARIABLE, raising=False)
        assert configs.class_sum(100) == "exact"
        assert configs.class_sum(1000) == "auto"
        monkeypatch.setenv(configs.CLASS_SUM_VARIABLE, "linear")
        assert configs.class_sum(100) == "linear"

    @pytest.mark.parametrize(
        ("version", "hip", "expected"),
        [("3.6.0", None, "auto"), ("3.6.0", "6.4", "exact"), ("3.7.1+rocm", "6.4", "auto")],
    )
    def test_amds_compiler_of_triton_3_6_has_no_linear_sums(
        self, monkeypatch: pytest.MonkeyPatch, version: str, hip: str | None, expected: str
    ) -> None:
        configs = part("configs")
        monkeypatch.delenv(configs.CLASS_SUM_VARIABLE, raising=False)
        monkeypatch.setattr(configs.triton, "__version__", version)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert configs.class_sum(1000) == expected

    def test_products_keep_the_digits_that_were_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plan = part("plan_parts")
        assert plan.precision(torch.float32, "highest") == "tf32x3"
        assert plan.gram_precision("tf32x3") == "ieee"
        assert plan.precision(torch.float32, "high") == plan.gram_precision("tf32") == "tf32"
        assert plan.precision(torch.float64, "high") == "ieee"
        monkeypatch.setattr(torch.version, "hip", "6.0")
        assert plan.precision(torch.float32, "high") == "ieee"

    def test_splits_fill_the_chip_and_no_more(self) -> None:
        configs = part("configs")
        assert configs.splits(tiles=1, depth=100_000, depth_block=32) == configs.MAX_SPLITS
        assert configs.splits(tiles=configs.SPREAD, depth=100_000, depth_block=32) == 1
        assert configs.splits(tiles=1, depth=64, depth_block=32) == 1
        assert configs.splits(tiles=0, depth=100_000, depth_block=32) == 1

    def test_counters_of_one_stream_are_made_once(self) -> None:
        counters = part("counters")
        device = torch.device("cpu")
        first = counters.counters_for(device)
        assert all(counters.counters_for(device).table.data_ptr() == first.table.data_ptr() for _ in range(1000))
        assert not first.table.any()
        assert sum(view.numel() for view in first.counters[1:]) <= counters.SLOT - 2

    def test_plans_do_not_grow_with_calls(self) -> None:
        plan, parts = part("plan"), part("plan_parts")
        tensors = (torch.randn(2, 4, 3, 3), torch.randn(5, 4), None)
        key = (parts.layouts(tensors), tensors[0].device, "highest", (1, 2), 2, False)
        plans = [plan.plan_region_logits(*key) for _ in range(100)]
        assert all(each is plans[0] for each in plans)
