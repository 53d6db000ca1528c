"""The feature maps the loss is made for, with their real channels and classes and a small batch.

Beside the rule, plain figures: float32 is right to a few of its roundings, and half precision to its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import COMPILED, STUDENT, Case, Network, loss_of, torch_threads
from judging import assert_no_worse_than_eager, icd_loss_problem
from torch.autograd import grad

pytestmark = [pytest.mark.usefixtures("poisoned_memory"), pytest.mark.parametrize("backend", COMPILED)]

WORKLOADS = {
    "CIFAR-100 ResNet32x4 to MobileNetV2": (100, Network(1280, 2, 2), Network(256, 8, 8)),
    "CIFAR-100 ResNet50 to MobileNetV2": (100, Network(1280, 2, 2), Network(2048, 4, 4)),
    "CUB-200 ResNet32x4 to MobileNetV2": (200, Network(1280, 7, 7), Network(256, 28, 28)),
    "CUB-200 ResNet32x4 to ShuffleNetV1": (200, Network(960, 14, 14), Network(256, 28, 28)),
    "CUB-200 VGG13 to VGG8": (200, Network(512, 28, 28), Network(512, 28, 28)),
    "ImageNet ResNet50 to MobileNetV2": (1000, Network(1280, 7, 7), Network(2048, 7, 7)),
}
FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "released": {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0},
    "sample": {"gram": "sample", "normalize": "l2", "temperature": 0.5},
}


def workload(name: str, form: str, dtype: torch.dtype) -> Case:
    classes, student, teacher = WORKLOADS[name]
    dtypes = {"dtype": dtype, "weight_dtype": torch.float32, "bias_dtype": torch.float32}
    options = dict(FORMS[form])
    if classes == 1000:  # the reference holds several B x N x K x K
        options["scales"] = (2,)
    networks = replace(student, magnitude=3.0, **dtypes), replace(teacher, magnitude=3.0, **dtypes)  # type: ignore[arg-type]
    return Case(1 if classes == 1000 and form == "paper" else 2, classes, *networks, options)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("name", sorted(WORKLOADS))
class TestWorkloads:
    def test_float32(self, backend: str, name: str, form: str) -> None:
        case = workload(name, form, torch.float32)
        single, double = case.tensors().requiring_grad(*STUDENT), case.tensors().mapped(torch.Tensor.double)
        double = double.requiring_grad(*STUDENT)
        exact = loss_of(double, "reference", **case.options)
        with torch_threads(2):
            loss = loss_of(single, backend, **case.options)
            gradients = grad(loss, single.student)
        torch.testing.assert_close(loss.double(), exact, rtol=5e-6, atol=2e-8)
        for gradient, expected in zip(gradients, grad(exact, double.student), strict=True):
            largest = float(expected.abs().max())
            torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=2e-5 * largest)

    def test_bfloat16_by_the_rule(self, backend: str, name: str, form: str) -> None:
        assert_no_worse_than_eager(icd_loss_problem(workload(name, form, torch.bfloat16)), backend, threads=2)
