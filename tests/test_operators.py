"""The operators of every compiled backend as PyTorch sees them: the agreed schemas, and torch.library.opcheck."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import COMPILED, FORMS, Case, Network

from icd_kernels.autograd import Wanted, _gradient_layout
from icd_kernels.backends import BACKENDS
from icd_kernels.operators import SCHEMAS
from icd_kernels.options import make_options
from icd_kernels.problem import lower

OPERATORS = [schema.split("(")[0] for schema in SCHEMAS]


def namespace(backend: str) -> Any:
    """The operators of a compiled backend."""
    (found,) = (candidate for candidate in BACKENDS if candidate.name == backend)
    return getattr(torch.ops, found.icd_loss.args[0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", COMPILED)
class TestSchemas:
    def test_are_the_contract(self, backend: str) -> None:
        operators = namespace(backend)
        for schema, name in zip(SCHEMAS, OPERATORS, strict=True):
            expected = torch._C.parse_schema(f"{operators.name}::{schema}")
            assert str(getattr(operators, name).default._schema) == str(expected)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("options", FORMS)
def test_opcheck(backend: str, options: dict[str, Any]) -> None:
    """torch.library.opcheck: schema (no input is changed or aliased), fake kernel against real one, and tracing."""
    mixed = bool(options)
    layout = "token_slice" if mixed else "contiguous"
    dtypes = (torch.bfloat16, torch.float64) if mixed else (torch.float32, torch.float32)
    for name, arguments in every_operators_arguments(backend, options, layout, dtypes):
        torch.library.opcheck(getattr(namespace(backend), name).default, arguments)


def every_operators_arguments(
    backend: str, keywords: dict[str, Any], layout: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every operator's name with arguments such as autograd gives it: with and without what is optional."""
    operators = namespace(backend)
    network = Network(layout=layout, dtype=dtypes[0], weight_dtype=dtypes[1], bias_dtype=dtypes[0])
    tensors = Case(student=network).tensors()
    without_bias = tensors._replace(student_bias=None, teacher_bias=None)
    maps = tensors.student_features, tensors.teacher_features
    problem = lower(make_options(**keywords), tensors.student_weight.shape[0], *(features.shape for features in maps))
    options, (student_finest, teacher_finest) = problem.options, problem[1:]
    student_regions, teacher_regions = (options.scales, student_finest), (options.scales, teacher_finest)
    numbers = (*options, student_finest, teacher_finest)
    features, *layout_of_grad = tensors.student_features, *_gradient_layout(*tensors[:3])[:3]
    yield "region_features", (features, options.scales)
    grad = torch.ones_like(operators.region_features(features, options.scales))
    yield "region_features_backward", (grad, *layout_of_grad, options.scales)
    for some, keep in ((tensors, True), (without_bias, False)):
        yield "region_logits", (*some[:3], *student_regions, keep)
        yield "icd_loss", (*some, *numbers, keep, keep)
    student, pooled = operators.region_logits(*tensors[:3], *student_regions, True)
    teacher, _ = operators.region_logits(*tensors[3:], *teacher_regions, False)
    layouts = _gradient_layout(*tensors[:3])
    yield "gram_kl", (student, teacher, *options, True)
    yield "gram_kl", (student, teacher, *options, False)
    kl, saved_kl = operators.gram_kl(student, teacher, *options, True)
    yield "gram_kl_backward", (torch.ones_like(kl), saved_kl, dtypes[0], *options)
    loss, saved, pooled_icd = operators.icd_loss(*tensors, *numbers, True, True)
    for wanted in (Wanted(True, True, True), Wanted(True, False, False), Wanted(False, True, False)):
        weight = tensors.student_weight, *layouts
        needed = [x if wanted.weight else x.new_empty(0) for x in (pooled, pooled_icd)]
        yield "region_logits_backward", (torch.ones_like(student), needed[0], *weight, *student_regions, wanted)
        yield "icd_loss_backward", (torch.ones_like(loss), saved, needed[1], *weight, *options, student_finest, wanted)
