"""Each loss against the formula written out in Python loops, right and as released."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch
from networks import CLASSES, EVERY_METHOD, LOGIT_METHODS, example, map_and_head, objective_of
from torch import Tensor
from torch.testing import assert_close

from icd_kernels import ICDLoss, region_logits, sdd_loss

SETTINGS: dict[str, Any] = {"temperature": 3.0, "alpha": 0.7, "beta": 2.5, "gamma": 1.3}


def local_logits(classes: int = CLASSES, regions: int = 21, batch: int = 4, size: float = 2.0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (
        size * torch.randn(batch, classes, regions, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


def by_region(logits: Tensor) -> Any:
    return logits.detach().double().transpose(1, 2).tolist()


@pytest.mark.parametrize("released", [False, True], ids=["right", "released"])
@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
class TestSDDLoss:
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_is_the_formula(self, base: str, released: bool, reduction: str) -> None:
        student, teacher, target = local_logits()
        got = sdd_loss(
            student, teacher, target, base=base, **SETTINGS, complementary_weight=3.0, reduction=reduction,
            released=released,
        )  # fmt: skip
        per_image = torch.tensor(
            formulas.sdd(by_region(student), by_region(teacher), target.tolist(), base, 3.0, SETTINGS, released)
        ).double()
        expected = {"mean": per_image.mean(), "sum": per_image.sum(), "none": per_image}[reduction]
        assert_close(got, expected.to(got.dtype), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_two_classes_and_one_region(self, base: str, released: bool, temperature: float) -> None:
        student, teacher, target = local_logits(classes=2, regions=1)
        settings = {**SETTINGS, "temperature": temperature}
        got = sdd_loss(student, teacher, target, base=base, **settings, reduction="none", released=released)
        expected = formulas.sdd(by_region(student), by_region(teacher), target.tolist(), base, 2.0, settings, released)
        assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)

    def test_reads_any_strides_and_lower_precision(self, base: str, released: bool) -> None:
        student, teacher, target = local_logits()
        exact = sdd_loss(student, teacher, target, base=base, released=released)
        student, teacher = (z.transpose(1, 2).contiguous().transpose(1, 2).float() for z in (student, teacher))
        got = sdd_loss(student, teacher, target, base=base, released=released)
        assert got.dtype == torch.float32
        assert_close(got.double(), exact, rtol=1e-5, atol=0)


def test_some_regions_are_complementary() -> None:
    """Else the tests above would not see the weight."""
    student, teacher, target = local_logits(classes=3)
    plain, doubled = (
        sdd_loss(student, teacher, target, complementary_weight=weight, reduction="none") for weight in (1.0, 2.0)
    )
    assert (doubled > plain).any()
    assert (doubled < 2 * plain).all()


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_logit_methods_are_made_of_their_parts(method: str) -> None:
    """total = ce_weight·CE + ramp·base_weight·base + γ·iCD, the base by :mod:`formulas`, iCD by `ICDLoss`."""
    batch = example()
    objective = objective_of(method)
    settings = objective.settings()
    out = objective(batch.student, batch.teacher, batch.target, epoch=5)
    family, _, base = method.rpartition("-")
    regions = [
        region_logits(*map_and_head(network)) if family else network.logits[:, :, None]
        for network in (batch.student, batch.teacher)
    ]
    numbers = {name: settings[name] for name in SETTINGS if name in settings}
    weight = settings.get("complementary_weight", 1.0)
    student, teacher = (by_region(logits) for logits in regions)
    rows = formulas.sdd(student, teacher, batch.target.tolist(), base, weight, numbers)
    expected_base = sum(rows) / len(rows)
    base_name = f"sd-{base}" if family else base
    assert set(out.components) == {"ce", base_name} | ({"icd"} if family == "icd" else set())
    assert out.components[base_name].item() == pytest.approx(expected_base, rel=1e-9)
    ce = torch.nn.functional.cross_entropy(batch.student.logits, batch.target)
    ramp = 1.0 if base == "kd" else 5 / 20
    total = settings["ce_weight"] * ce.item() + ramp * settings["base_weight"] * expected_base
    if family == "icd":
        icd = ICDLoss(gram="spatial", normalize="l2", temperature=2.0)
        total += (
            2.0 * icd(batch.student.features, batch.student.head, batch.teacher.features, batch.teacher.head).item()
        )
    assert out.total.item() == pytest.approx(total, rel=1e-9)


def test_sp() -> None:
    batch = example()
    got = objective_of("sp", reduction="none")(*batch[:3]).components["sp"]
    student, teacher = (map_and_head(network)[0].flatten(1).tolist() for network in (batch.student, batch.teacher))
    assert_close(got, torch.tensor(formulas.sp(student, teacher), dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("classes", [2, 3, 7, 8, 12])
def test_ldrld(classes: int) -> None:
    batch = example(classes=classes)
    got = objective_of("ldrld", num_classes=classes, reduction="none")(*batch[:3]).components["ldrld"]
    expected = [
        formulas.ldrld(s, t, temperature=4.0, top_k=7, alpha=10.5, beta=7.0)
        for s, t in zip(batch.student.logits.tolist(), batch.teacher.logits.tolist(), strict=True)
    ]
    assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_same_value_on_every_reduction(method: str) -> None:
    batch = example()
    outs = []
    for reduction in ("none", "mean", "sum"):
        objective = objective_of(method, reduction=reduction).double()
        torch.manual_seed(3)
        outs.append(objective(*batch[:3], epoch=7, indices=batch.indices).total)
    assert outs[0].shape == batch.target.shape
    assert_close(outs[0].mean(), outs[1])
    assert_close(outs[0].sum(), outs[2])
