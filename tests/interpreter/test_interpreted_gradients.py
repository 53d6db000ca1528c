"""The Triton backend's gradients in Triton's interpreter, against finite differences in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from cases import (
    GRAMS,
    PYRAMIDS,
    REDUCTIONS,
    STUDENT,
    Case,
    Limits,
    Network,
    Tensors,
    loss_of,
    option_grid,
)
from hypothesis import Phase
from torch.autograd import gradcheck

from icd_kernels import gram_kl, region_logits
from icd_kernels.backends.triton.operators import interprets

if not interprets():
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from programs import interpreted

TRITON = "triton"
LIMITS = Limits(batch=3, channels=6, side=6, classes=8, scale=3, scales=3)
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a failing case would take the interpreter an hour."""
SMALL: dict[str, Any] = {"scales": (1, 2)}


def with_student(tensors: Tensors, student: Sequence[torch.Tensor]) -> Tensors:
    """`tensors` with other student's features, weight and bias."""
    return tensors._replace(**dict(zip(STUDENT, student, strict=True)))


@pytest.fixture(autouse=True)
def _interpreted(poisoned_memory: None) -> Iterator[None]:
    with interpreted():
        yield


class TestGradcheck:
    @pytest.mark.parametrize("options", option_grid())
    def test_icd_loss(self, options: dict[str, Any]) -> None:
        case = Case(classes=3, student=Network(2, 2, 3), teacher=Network(2, 2, 2), options={**SMALL, **options})
        tensors = case.tensors().requiring_grad(*STUDENT)

        def loss(*student: torch.Tensor) -> torch.Tensor:
            return loss_of(with_student(tensors, student), TRITON, **case.options)

        assert gradcheck(loss, tensors.student, fast_mode=True)

    @pytest.mark.parametrize("gram", GRAMS)
    def test_every_element(self, gram: str) -> None:
        case = Case(classes=3, student=Network(1, 2, 2), teacher=Network(2, 2, 2), options={**SMALL, "gram": gram})
        tensors = case.tensors().requiring_grad(*STUDENT)
        options = {**SMALL, "gram": gram, "normalize": "l2", "reduction": "none"}
        assert gradcheck(lambda *student: loss_of(with_student(tensors, student), TRITON, **options), tensors.student)

    @pytest.mark.parametrize("pyramid", PYRAMIDS)
    def test_region_logits(self, pyramid: str) -> None:
        student = Case(student=Network(2, 4, 3)).tensors().requiring_grad(*STUDENT).student
        assert gradcheck(
            lambda *s: region_logits(*s, scales=(1, 3, 2), pyramid=pyramid, backend=TRITON), student, fast_mode=True
        )

    @pytest.mark.parametrize("gram", GRAMS)
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_gram_kl(self, gram: str, reduction: str) -> None:
        student, teacher = Case(options=SMALL).local_logits()
        options: dict[str, Any] = {**SMALL, "gram": gram, "reduction": reduction}
        assert gradcheck(
            lambda s: gram_kl(s, teacher, backend=TRITON, **options), student.requires_grad_(), fast_mode=True
        )
