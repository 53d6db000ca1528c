"""Heads as users reported them: nothing when fresh, adapters, heads and bodies that are replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tapped import CLASSES, images_of, net, off, train
from torch import Tensor, nn

from icd_kernels import FeatureTap, make_objective
from icd_kernels.tap import TapError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, as LoRA has it: nothing when it is fresh."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.is_enabled = True

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.base(rows)
        return out + 2.0 * self.up(self.down(rows)) if self.is_enabled else out


class Scale(nn.Module):
    """A learnt factor, 1 when it is fresh."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, rows: Tensor) -> Tensor:
        return self.factor * rows


FRESH_IDENTITIES = {
    "norm before the head": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, CLASSES)),
    "adapter": lambda: Adapted(nn.Linear(8, CLASSES)),
    "learnt scale": lambda: nn.Sequential(Scale(), nn.Linear(8, CLASSES)),
    "prelu of a positive map": lambda: nn.Sequential(nn.PReLU(), nn.Linear(8, CLASSES)),
    "zero-initialised residual": lambda: nn.Sequential(_Residual(), nn.Linear(8, CLASSES)),
}


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = rows + self.layer(rows)
        return out


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", FRESH_IDENTITIES)
def test_what_is_nothing_when_fresh_is_part_of_the_head(name: str, mode: str) -> None:
    """Looked at when fresh, trained, then read: the first tap goes on, and a new one says the same."""
    model = net(FRESH_IDENTITIES[name]())
    tap = FeatureTap(model, images_of())
    train(model, tap)
    model.train(mode == "train")
    assert off(tap(images_of())) < 1e-5
    assert off(FeatureTap(model)(images_of())) < 1e-5


def test_an_adapter_of_the_head_is_trained_by_local_logits() -> None:
    model, teacher = net(Adapted(nn.Linear(8, CLASSES))), net(nn.Linear(8, CLASSES))
    adapter: Any = model[4]
    out = FeatureTap(model)(images_of())
    with torch.no_grad():
        teacher_out = FeatureTap(teacher)(images_of())
    loss = make_objective("sd-kd", num_classes=CLASSES, ce_weight=0)(out, teacher_out).total
    (gradient,) = torch.autograd.grad(loss, adapter.up.weight)
    assert gradient.abs().sum() > 0


def test_an_adapter_that_is_switched_off() -> None:
    model = net(Adapted(nn.Linear(8, CLASSES)))
    tap = FeatureTap(model, images_of())
    train(model, tap)
    adapter: Any = model[4]
    adapter.is_enabled = False
    out = tap(images_of())
    assert off(out) < 1e-5
    assert out.head is adapter.base


class TestPeft:
    def model(self) -> nn.Module:
        model = nn.Sequential()
        model.add_module("body", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()))
        model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        model.add_module("fc", nn.Linear(8, CLASSES))
        return model

    def test_an_adapter_of_the_head(self) -> None:
        peft = pytest.importorskip("peft", reason="LoRA on a head needs peft: pip install peft")
        model = peft.get_peft_model(self.model(), peft.LoraConfig(target_modules=["fc"], r=2))
        tap = FeatureTap(model, images_of())
        train(model, tap)
        out = tap(images_of())
        assert off(out) < 1e-5
        with model.disable_adapter():
            switched_off = tap(images_of())
            assert off(switched_off) < 1e-5
        assert not torch.allclose(out.logits, switched_off.logits)

    def test_a_head_to_save(self) -> None:
        """A copy of the head that is trained in its place."""
        peft = pytest.importorskip("peft", reason="LoRA on a head needs peft: pip install peft")
        config = peft.LoraConfig(target_modules=["body.2"], modules_to_save=["fc"], r=2)
        model = peft.get_peft_model(self.model(), config)
        tap = FeatureTap(model, images_of())
        train(model, tap)
        out = tap(images_of())
        assert off(out) < 1e-5
        assert out.head is model.base_model.model.fc.modules_to_save["default"]

    def test_an_adapter_that_is_added_later(self) -> None:
        peft = pytest.importorskip("peft", reason="LoRA on a head needs peft: pip install peft")
        model = self.model()
        tap = FeatureTap(model, images_of())
        tap.model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["fc"], r=2), model)
        train(model, tap)
        assert off(tap(images_of())) < 1e-5


def test_a_head_that_is_replaced() -> None:
    model = net(nn.Linear(8, CLASSES))
    tap = FeatureTap(model)
    tap(images_of())
    model[4] = nn.Linear(8, 7)
    out = tap(images_of())
    assert out.head is model[4]
    assert out.logits.shape == (4, 7)
    model[4] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, CLASSES))
    assert off(tap(images_of())) < 1e-5


def test_a_body_that_is_replaced_is_looked_at_again() -> None:
    model: Any = nn.Sequential()
    model.add_module("old", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    model.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)))
    tap = FeatureTap(model, images_of())
    model[0] = nn.Conv2d(3, 8, 5)
    assert off(tap(images_of())) < 1e-5
    model[1] = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    tap.close()
    with pytest.raises(TapError, match="is its mean"):
        tap(images_of())
