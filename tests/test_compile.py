"""torch.compile(fullgraph=True): no graph break, the same numbers, the same layout of the gradient."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import EVERY_BACKEND, FORMS, STUDENT, Case, Network, Tensors, loss_of
from torch import Tensor
from torch.autograd import grad
from torch.fx.experimental.proxy_tensor import make_fx

from icd_kernels import gram_kl, icd_loss, region_logits

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler, which torch.compile's inductor needs"
)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestCompile:
    """fullgraph=True raises at a graph break; numbers and gradients are those of the call that is not compiled."""

    @pytest.mark.parametrize("options", FORMS)
    def test_traces(self, backend: str, options: dict[str, Any]) -> None:
        check_compiled(backend, options, "aot_eager")

    @pytest.mark.parametrize("options", FORMS[3:4])
    def test_traces_any_batch(self, backend: str, options: dict[str, Any]) -> None:
        check_compiled(backend, options, "aot_eager", dynamic=True)

    @needs_compiler
    @pytest.mark.thorough
    @pytest.mark.parametrize("options", FORMS[1:2])
    def test_inductor(self, backend: str, options: dict[str, Any]) -> None:
        check_compiled(backend, options, "inductor")

    def test_other_sizes_without_compiling_again(self, backend: str) -> None:
        """No two sizes are the same here: torch.compile takes sizes that are once the same as always the same."""
        compiled = compile_loss(backend, {}, "aot_eager", dynamic=True)
        for batch, height, width in ((7, 8, 16), (9, 12, 20)):
            case = Case(batch, 5, Network(11, height, width), Network(13, 17, 19))
            with torch.compiler.set_stance("default" if batch == 7 else "fail_on_recompile"):
                assert_same(compiled, backend, {}, case)

    @pytest.mark.parametrize("options", FORMS[:3])
    def test_symbols_without_a_compiler(self, backend: str, options: dict[str, Any]) -> None:
        """Sizes that are symbols, which no memory of what was planned may be asked for."""
        tensors = Case(options=options).tensors().requiring_grad(*STUDENT)

        def compute(*given: Any) -> Tensor:
            return loss_of(Tensors(*given), backend, **options)

        graph = make_fx(compute, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*tensors)
        torch.testing.assert_close(graph(*tensors), compute(*tensors))

    def test_inside_a_model(self, backend: str) -> None:
        """Layers before the loss, everything in one graph, parameters' gradients through it."""
        torch.manual_seed(0)
        body, head = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Linear(6, 5)
        teacher = Case(classes=5).tensors().mapped(torch.Tensor.float)[3:5]

        def loss(images: Tensor) -> Tensor:
            return icd_loss(body(images).relu(), head.weight, *teacher, head.bias, backend=backend)

        images = torch.randn(2, 3, 8, 8)
        parameters = [*body.parameters(), *head.parameters()]
        expected = grad(loss(images), parameters)
        torch._dynamo.reset()
        got = grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(images), parameters)
        torch.testing.assert_close(got, expected)

    def test_without_gradient(self, backend: str) -> None:
        tensors = Case().tensors()
        torch._dynamo.reset()
        with torch.no_grad():
            got = torch.compile(lambda *t: loss_of(Tensors(*t), backend), fullgraph=True, backend="aot_eager")(*tensors)
        torch.testing.assert_close(got, loss_of(tensors, backend))

    def test_the_other_functions(self, backend: str) -> None:
        tensors = Case().tensors().requiring_grad(*STUDENT)
        teacher = Case(seed=1).local_logits()[1]

        def compute(*student: Tensor) -> Tensor:
            return gram_kl(region_logits(*student, backend=backend), teacher, backend=backend)

        torch._dynamo.reset()
        compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
        got, expected = (grad(function(*tensors.student), tensors.student) for function in (compiled, compute))
        torch.testing.assert_close(got, expected)


def compile_loss(
    backend: str, options: dict[str, Any], backend_of_compile: str, dynamic: bool = False
) -> Callable[..., Tensor]:
    torch._dynamo.reset()

    def loss(*tensors: Tensor) -> Tensor:
        return loss_of(Tensors(*tensors), backend, **options)

    return torch.compile(loss, fullgraph=True, backend=backend_of_compile, dynamic=dynamic)


def check_compiled(backend: str, options: dict[str, Any], backend_of_compile: str, dynamic: bool = False) -> None:
    compiled = compile_loss(backend, options, backend_of_compile, dynamic)
    student = Network(layout="channels_last", dtype=torch.float32, weight_dtype=torch.float32)
    for batch in (3, 4) if dynamic else (3,):
        assert_same(compiled, backend, options, Case(batch=batch, student=student))


def assert_same(compiled: Callable[..., Tensor], backend: str, options: dict[str, Any], case: Case) -> None:
    """Loss and gradients, up to the order of sums inductor may choose; the same dtype and strides of the gradient."""
    plain, traced = (case.tensors().requiring_grad(*STUDENT) for _ in range(2))
    expected, got = loss_of(plain, backend, **options), compiled(*traced)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    for one, other in zip(grad(got.sum(), traced.student), grad(expected.sum(), plain.student), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        assert backend == "reference" or one.stride() == other.stride()
