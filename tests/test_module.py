"""ICDLoss: its options, presets and heads, and how it behaves as a module."""

from __future__ import annotations

import copy
import io
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from cases import EVERY_BACKEND, Case, loss_of
from torch import Tensor, nn
from torch.autograd import grad

from icd_kernels import ICDLoss, class_form_weight, make_objective
from icd_kernels.options import DEFAULT_SCALES, make_options

PRESETS: dict[str, Any] = {
    "paper": ICDLoss.paper,
    "balanced": partial(ICDLoss.balanced, 5),
    "released": ICDLoss.released,
    "plain": ICDLoss,
}


def heads() -> tuple[Tensor, nn.Linear, Tensor, nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(2, 6, 4, 4), nn.Linear(6, 5), torch.randn(2, 3, 7, 7), nn.Linear(3, 5)


class TestPresets:
    def test_paper(self) -> None:
        loss = ICDLoss.paper()
        assert loss.options == make_options(gram="class", pyramid="adaptive", normalize="none")
        assert loss.weight == 1.0

    def test_balanced(self) -> None:
        loss = ICDLoss.balanced(200)
        assert loss.options == make_options(gram="class", pyramid="adaptive", normalize="zscore")
        assert loss.weight == pytest.approx(0.15)
        assert ICDLoss.balanced(200, normalize="none").weight == class_form_weight("none", 200) == 0.3 / 200
        assert ICDLoss.balanced(200, weight=7.0).weight == 7.0

    @pytest.mark.parametrize(("normalize", "classes"), [("cosine", 10), ("none", 1)])
    def test_no_weight_for_what_is_not_there(self, normalize: str, classes: int) -> None:
        with pytest.raises(ValueError, match="normalize must be one of" if classes > 1 else "num_classes must be"):
            class_form_weight(normalize, classes)

    def test_released(self) -> None:
        loss = ICDLoss.released()
        assert loss.options == make_options(gram="spatial", pyramid="nested", normalize="l2", temperature=2.0)
        assert loss.options.scales == DEFAULT_SCALES
        assert loss.options.scale_weights == (1 / 6, 2 / 6, 3 / 6)
        assert loss.weight == 2.0

    @pytest.mark.parametrize("preset", ["paper", "balanced", "released"])
    def test_every_option_can_be_overridden(self, preset: str) -> None:
        options: dict[str, Any] = {
            "scales": (2, 3),
            "gram": "sample",
            "pyramid": "adaptive",
            "normalize": "zscore",
            "temperature": 3.0,
            "scale_weights": (0.25, 0.75),
            "reduction": "none",
        }
        loss = PRESETS[preset](**options, weight=0.5, backend="reference")
        assert loss.options == make_options(**options)
        assert (loss.weight, loss.backend) == (0.5, "reference")

    def test_of_the_preset_is_overridden_alone(self) -> None:
        loss = ICDLoss.released(temperature=3.0)
        assert loss.options == make_options(gram="spatial", pyramid="nested", normalize="l2", temperature=3.0)

    @pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS)
    def test_unknown_option(self, make: Any) -> None:
        with pytest.raises(TypeError, match="temprature"):
            make(temprature=2.0)

    def test_scales_from_an_iterator(self) -> None:
        assert ICDLoss(scales=iter([1, 2]), scale_weights=iter([1, 2])).options.scale_weights == (1.0, 2.0)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestForward:
    @pytest.mark.parametrize("make", PRESETS.values(), ids=PRESETS)
    def test_is_the_weighted_function(self, backend: str, make: Any) -> None:
        module = make(backend=backend, weight=1.5, reduction="none")
        tensors = Case().tensors()
        got = module(tensors[0], tensors[1:3], tensors[3], tensors[4:6])
        torch.testing.assert_close(got, 1.5 * loss_of(tensors, backend, **module.options._asdict()))

    def test_heads_in_every_form(self, backend: str) -> None:
        """Linear, 1 x 1 convolution and pair give the same loss, and gradients to their own parameters."""
        student, linear, teacher, teacher_head = heads()
        convolution = nn.Conv2d(6, 5, 1)
        with torch.no_grad():
            convolution.weight.copy_(linear.weight[:, :, None, None])
            convolution.bias.copy_(linear.bias)  # type: ignore[union-attr]
        teacher_convolution = nn.Conv2d(3, 5, 1)
        teacher_convolution.load_state_dict(
            {name: value.view_as(getattr(teacher_convolution, name)) for name, value in teacher_head.named_parameters()}
        )
        module = ICDLoss(backend=backend)
        expected = module(student, linear, teacher, teacher_head)
        gradients = grad(expected, [linear.weight, linear.bias])
        for head, parameters, other in (
            (convolution, list(convolution.parameters()), teacher_convolution),
            ((linear.weight, linear.bias), [linear.weight, linear.bias], (teacher_head.weight, teacher_head.bias)),
            ([linear.weight, linear.bias], [linear.weight, linear.bias], teacher_head),
        ):
            loss = module(student, head, teacher, other)
            torch.testing.assert_close(loss, expected)
            for got, wanted in zip(grad(loss, parameters), gradients, strict=True):
                torch.testing.assert_close(got.flatten(), wanted.flatten())

    def test_heads_without_bias(self, backend: str) -> None:
        student, linear, teacher, teacher_head = heads()
        with torch.no_grad():
            linear.bias.zero_()
        module = ICDLoss(backend=backend)
        expected = module(student, linear, teacher, teacher_head)
        biasless = nn.Linear(6, 5, bias=False)
        biasless.load_state_dict({"weight": linear.weight})
        for head in (biasless, (linear.weight, None)):
            torch.testing.assert_close(module(student, head, teacher, teacher_head), expected)

    def test_a_training_step_lowers_it(self, backend: str) -> None:
        student, linear, teacher, teacher_head = heads()
        student.requires_grad_()
        module = ICDLoss(backend=backend)
        optimizer = torch.optim.SGD([student, *linear.parameters()], lr=0.1)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = module(student, linear, teacher, teacher_head)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]
        assert all(parameter.grad is None for parameter in teacher_head.parameters())


class TestAsAModule:
    def test_has_no_state(self) -> None:
        loss = ICDLoss.released()
        assert loss.state_dict() == {}
        assert list(loss.parameters()) == []
        loss.load_state_dict({})

    def test_shows_its_options(self) -> None:
        text = repr(ICDLoss.released(scales=(1, 2), backend="reference"))
        for shown in (
            "ICDLoss(",
            "scales=(1, 2)",
            "scale_weights=(0.33",
            "gram='spatial'",
            "pyramid='nested'",
            "normalize='l2'",
            "temperature=2.0",
            "reduction='mean'",
            "backend='reference'",
            "weight=2.0",
        ):
            assert shown in text

    def test_copies_and_pickles(self) -> None:
        loss = ICDLoss.released(scale_weights=(1 / 3, 2 / 3, 0), weight=3.0)
        networks = heads()
        for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert copied.options == loss.options
            assert repr(copied) == repr(loss)
            assert torch.equal(copied(*networks), loss(*networks))

    def test_saves_with_a_model(self) -> None:
        """A checkpoint of a model that holds the loss loads with weights_only=True."""
        model = nn.ModuleDict({"body": nn.Linear(2, 2), "loss": ICDLoss()})
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        model.load_state_dict(torch.load(file, weights_only=True))

    def test_moves_and_casts_with_a_model(self) -> None:
        networks = heads()
        loss = ICDLoss().half().train().eval()
        assert loss(*networks).dtype == torch.float32


class TestNumPyNumbers:
    """A script's scales, weights and temperatures often come out of NumPy."""

    def test_they_are_numbers(self) -> None:
        np = pytest.importorskip("numpy")
        loss = ICDLoss(
            scales=np.array([1, 2]),
            temperature=np.float32(2.0),
            scale_weights=np.array([0.5, 0.5]),
            weight=np.float64(3),
        )
        assert loss.options.scales == (1, 2)
        assert all(type(scale) is int for scale in loss.options.scales)
        assert loss.options.temperature == 2.0
        assert type(loss.options.temperature) is float
        assert loss.weight == 3.0
        objective = make_objective(
            "icd-kd", num_classes=np.int64(5), temperature=np.float32(4.0), icd_weight=np.float64(1)
        )
        assert "num_classes=5, " in repr(objective)

    @pytest.mark.parametrize("option", ["temperature", "weight"])
    def test_its_truth_values_are_not(self, option: str) -> None:
        np = pytest.importorskip("numpy")
        with pytest.raises(TypeError, match=option):
            ICDLoss(**{option: np.bool_(True)})
