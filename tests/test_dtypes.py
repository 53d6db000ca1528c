"""Dtypes: of the loss, of the gradients, of the sums; and autocast, which needs nothing and changes nothing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from cases import DTYPES, EVERY_BACKEND, GRAMS, STUDENT, Case, Network, Tensors, loss_of
from torch.autograd import grad

from icd_kernels import gram_kl, icd_loss, region_logits


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestDtypes:
    @pytest.mark.parametrize("odd_one", Tensors._fields)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_the_loss(self, backend: str, odd_one: str, dtype: torch.dtype) -> None:
        """float64 if any tensor is, otherwise float32; every gradient has its tensor's dtype."""
        half = Network(dtype=torch.float16, weight_dtype=torch.bfloat16, bias_dtype=torch.float32)
        tensors = Case(student=half, teacher=half).tensors()
        tensors = tensors._replace(**{odd_one: getattr(tensors, odd_one).to(dtype)}).requiring_grad(*STUDENT)
        loss = loss_of(tensors, backend)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for tensor, gradient in zip(tensors.student, grad(loss, tensors.student), strict=True):
            assert gradient.dtype == tensor.dtype

    @pytest.mark.parametrize("dtypes", list(product(DTYPES, DTYPES)), ids=str)
    def test_of_logits(self, backend: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        student, teacher = Case().local_logits()
        student, teacher = student.to(dtypes[0]).requires_grad_(), teacher.to(dtypes[1])
        loss = gram_kl(student, teacher, backend=backend)
        assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        assert grad(loss, student)[0].dtype == dtypes[0]
        logits = region_logits(feature := Case().tensors().student_features.to(dtypes[0]), feature.new_ones(4, 3))
        assert logits.dtype == (torch.float64 if dtypes[0] == torch.float64 else torch.float32)

    def test_half_precision_sums_in_float32(self, backend: str) -> None:
        """Exact inputs whose sums bfloat16 could not hold."""
        features = torch.arange(1, 257).view(1, 1, 16, 16).to(torch.bfloat16)
        weight = torch.ones(2, 1, dtype=torch.bfloat16)
        logits = region_logits(features, weight, scales=(1,), backend=backend)
        assert logits.flatten().tolist() == [128.5, 128.5]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
@pytest.mark.parametrize("gram", GRAMS)
class TestAutocast:
    """Autocast needs nothing and changes nothing: the math's dtype is decided by the tensors."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_changes_nothing(self, backend: str, gram: str, dtype: torch.dtype) -> None:
        single = Network(dtype=torch.float32, weight_dtype=torch.float32, bias_dtype=torch.float32)
        case = Case(student=single, teacher=single)
        results = []
        for enabled in (False, True):
            tensors = case.tensors().requiring_grad(*STUDENT)
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                loss = loss_of(tensors, backend, gram=gram)
                logits = region_logits(*tensors[:3], backend=backend)
                kl = gram_kl(logits, logits.detach().flip(1), gram=gram, backend=backend)
            results.append((loss, logits, kl, *grad(loss + kl, tensors.student)))
        for plain, cast in zip(*results, strict=True):
            assert cast.dtype == torch.float32
            assert torch.equal(plain, cast)

    def test_of_a_model_with_bfloat16_features(self, backend: str, gram: str) -> None:
        torch.manual_seed(0)
        body, head = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 5)
        teacher = Case().tensors().mapped(torch.Tensor.float)[3:5]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = body(torch.randn(2, 3, 8, 8))
            assert features.dtype == torch.bfloat16
            loss = icd_loss(features, head.weight, *teacher, head.bias, gram=gram, backend=backend)
        assert loss.dtype == torch.float32
        loss.backward()
        for parameter in (*body.parameters(), *head.parameters()):
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
