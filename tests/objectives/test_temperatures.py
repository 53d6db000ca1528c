"""Temperatures that are learnt or follow the epochs, and logits that are standardised."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import LOGIT_METHODS, example, objective_of
from torch import nn
from torch.testing import assert_close

from icd_kernels import sdd_loss

STANDARDIZED = [method for method in LOGIT_METHODS if not method.endswith("nkd")]
WITH_TEMPERATURE = [*LOGIT_METHODS, "ldrld"]


@pytest.mark.parametrize("method", WITH_TEMPERATURE)
class TestTemperature:
    def test_a_parameter_is_learnt(self, method: str) -> None:
        batch = example()
        temperature = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
        objective = objective_of(method, temperature=temperature)
        assert [id(parameter) for parameter in objective.parameters()] == [id(temperature)]
        assert objective.settings()["temperature"] == "a tensor"
        out = objective(*batch[:3], epoch=20)
        fixed = objective_of(method, temperature=3.0)(*batch[:3], epoch=20)
        assert_close(out.total, fixed.total)
        (gradient,) = torch.autograd.grad(out.total, temperature)
        step = 1e-5
        higher, lower = (
            objective_of(method, temperature=3.0 + sign * step)(*batch[:3], epoch=20).total for sign in (1, -1)
        )
        assert_close(gradient, (higher - lower).detach() / (2 * step), rtol=1e-5, atol=1e-6)

    def test_a_copy_has_its_own(self, method: str) -> None:
        objective = objective_of(method, temperature=nn.Parameter(torch.tensor(3.0)))
        other = copy.deepcopy(objective)
        with torch.no_grad():
            next(iter(other.parameters())).fill_(5.0)
        batch = example(torch.float32)
        assert_close(
            other(*batch[:3], epoch=20).total, objective_of(method, temperature=5.0)(*batch[:3], epoch=20).total
        )
        assert next(iter(objective.parameters())) == 3

    def test_a_schedule_is_asked_for_the_epoch(self, method: str) -> None:
        batch = example()
        objective = objective_of(method, temperature=lambda epoch: 1.0 + epoch, ramp_epochs=0)
        expected = objective_of(method, temperature=4.0, ramp_epochs=0)
        assert_close(objective(*batch[:3], epoch=3).total, expected(*batch[:3], epoch=3).total)
        assert objective.settings()["temperature"] == "a schedule"
        with pytest.raises(TypeError, match="epoch must be given: temperature is a function of it"):
            objective(*batch[:3])

    def test_wrong_ones(self, method: str) -> None:
        batch = example(torch.float32)
        with pytest.raises(ValueError, match=r"temperature must be a number, a floating tensor of shape \(\).*\(2,\)"):
            objective_of(method, temperature=torch.ones(2))
        for wrong in (nn.Parameter(torch.tensor(-1.0)), lambda epoch: -1.0):
            with pytest.raises(ValueError, match="temperature must be finite and above 0, got -1"):
                objective_of(method, temperature=wrong)(*batch[:3], epoch=20)


class TestStandardize:
    @pytest.mark.parametrize("method", STANDARDIZED)
    def test_is_the_loss_of_z_scores(self, method: str) -> None:
        """Mean 0 and standard deviation 1 over the classes, as in the paper's equation and not as in its code."""
        batch = example()
        out = objective_of(method, standardize=True)(*batch[:3], epoch=20)
        scored = []
        for network in batch[:2]:
            logits = network.logits
            centred = logits - logits.mean(1, keepdim=True)
            scored.append(network._replace(logits=centred / logits.std(1, keepdim=True, correction=0)))
        if "-" not in method:
            expected = objective_of(method)(*scored, batch.target, epoch=20).components[method]
            assert_close(out.components[method], expected)
        assert out.total.isfinite()

    @pytest.mark.parametrize("base", ["kd", "dkd"])
    def test_size_and_shift_are_nothing(self, base: str) -> None:
        student, teacher = torch.randn(2, 4, 7, 5, dtype=torch.float64)
        target = torch.tensor([0, 6, 3, 2])
        one = sdd_loss(student, teacher, target, base=base, standardize=True)
        assert_close(sdd_loss(3 * student + 1, 0.1 * teacher - 4, target, base=base, standardize=True), one)

    @pytest.mark.parametrize("backend", ["auto", "reference"])
    @pytest.mark.parametrize("base", ["kd", "dkd"])
    def test_gradcheck(self, base: str, backend: str) -> None:
        torch.manual_seed(0)
        student, teacher = torch.randn(2, 3, 5, 5, dtype=torch.float64)
        student[0, 2, 1] = -torch.inf
        target = torch.tensor([0, 4, 3])

        def loss(free: Any) -> Any:
            logits = torch.where(student == -torch.inf, student, free)
            return sdd_loss(logits, teacher, target, base=base, standardize=True, backend=backend)

        free = student.clone().nan_to_num(neginf=0.0).requires_grad_()
        assert torch.autograd.gradcheck(loss, (free,))

    def test_equal_logits_are_no_division_by_zero(self) -> None:
        student = torch.zeros(2, 3, 1, requires_grad=True)
        loss = sdd_loss(student, torch.randn(2, 3, 1), torch.tensor([0, 1]), standardize=True)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()

    def test_nkd_has_none(self) -> None:
        with pytest.raises(TypeError, match="'nkd' has no option 'standardize'"):
            objective_of("nkd", standardize=True)
        with pytest.raises(ValueError, match="standardize is of 'kd' and 'dkd', got base 'nkd'"):
            sdd_loss(torch.ones(2, 3, 1), torch.ones(2, 3, 1), torch.tensor([0, 1]), base="nkd", standardize=True)
        with pytest.raises(TypeError, match="standardize must be True or False, got int"):
            objective_of("kd", standardize=1)
