"""The CUDA backend on a GPU: what the emulation (test_cuda_emulated.py) cannot show (`make gpu`)."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES_RUN, STUDENT, Case, Limits, Network, Tensors, case_strategy, feature_map, loss_of, option_grid
from hypothesis import given, settings
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem
from test_linear_class import KINDS, SWITCH, TOLERANCE, errors, gradient_terms, logits, loss_and_gradient
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.profiler import ProfilerActivity, profile

from icd_kernels import gram_kl, region_features
from icd_kernels.backends import linear_reference
from icd_kernels.backends.cuda import CUDA
from icd_kernels.options import make_options
from icd_kernels.problem import lower

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(CUDA.missing is not None, reason=f"backend 'cuda' is missing: {CUDA.missing}"),
]

BACKEND = "cuda"
LIMITS = Limits(batch=20, channels=300, side=30, classes=600, scale=9)
FORMS: dict[str, dict[str, Any]] = {
    "paper": {"gram": "class", "pyramid": "adaptive", "normalize": "none", "temperature": 4.0},
    "released": {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0},
    "sample": {"gram": "sample", "normalize": "l2", "temperature": 1.0},
    "sample by image": {"gram": "sample", "normalize": "zscore", "reduction": "none"},
}


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    """Eager PyTorch, whose error is the measure, must not use TF32 where the backend does not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(case: Case, *names: str) -> Tensors:
    return case.tensors().mapped(lambda tensor: tensor.cuda()).requiring_grad(*names)


def results(tensors: Tensors, form: str) -> tuple[Tensor, ...]:
    loss = loss_of(tensors, BACKEND, **FORMS[form])
    return loss.detach(), *grad(loss.sum(), tensors.student)


def real_case(form: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Case:
    student = Network(320, 7, 7, layout, "contiguous", dtype, dtype, dtype)
    teacher = Network(256, 28, 28, layout, "contiguous", dtype, dtype, dtype)
    return Case(batch=80, classes=300, student=student, teacher=teacher, options=FORMS[form])


@pytest.mark.parametrize("problem", [icd_loss_problem, region_logits_problem, gram_kl_problem])
@given(case=case_strategy(LIMITS))
@settings(max_examples=200, deadline=None)
def test_drawn_cases(problem: Callable[[Case], Problem], case: Case) -> None:
    CASES_RUN[f"{problem.__name__.removesuffix('_problem')} by cuda on the GPU"] += 1
    assert_no_worse_than_eager(problem(case).on("cuda"), BACKEND)


@pytest.mark.parametrize("options", option_grid())
def test_finite_differences(options: dict[str, Any]) -> None:
    tensors = on_gpu(Case(batch=2, classes=3, student=Network(channels=2, height=3, width=4), seed=3), *STUDENT)

    def compute(*student: Tensor) -> Tensor:
        return loss_of(tensors._replace(**dict(zip(STUDENT, student, strict=True))), BACKEND, scales=(2, 1), **options)

    assert gradcheck(compute, tensors.student)


@pytest.mark.parametrize("form", sorted(FORMS))
class TestRealShapes:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid", "permuted", "every_second"])
    def test_no_worse_than_eager(self, form: str, dtype: torch.dtype, layout: str) -> None:
        case = replace(real_case(form, dtype, layout), batch=12)
        assert_no_worse_than_eager(icd_loss_problem(case).on("cuda"), BACKEND)

    def test_every_run_is_the_same(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        expected = results(tensors, form)
        for _ in range(100):
            assert all(torch.equal(a, b) for a, b in zip(results(tensors, form), expected, strict=True))

    def test_graph_capture_and_replay(self, form: str) -> None:
        """Two graphs on two streams at once, which would meet in any memory they shared."""
        tensors = on_gpu(real_case(form), *STUDENT)
        expected = results(tensors, form)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results(tensors, form)
        torch.cuda.current_stream().wait_stream(stream)
        graphs, captured = [], []
        for _ in range(2):
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                captured.append(results(tensors, form))
        streams = [torch.cuda.Stream() for _ in graphs]
        for _ in range(20):
            for graph, side in zip(graphs, streams, strict=True):
                with torch.cuda.stream(side):
                    graph.replay()
        torch.cuda.synchronize()
        for outcome in captured:
            assert all(torch.equal(a, b) for a, b in zip(outcome, expected, strict=True))

    def test_two_streams(self, form: str) -> None:
        tensors = [on_gpu(replace(real_case(form), seed=seed), *STUDENT) for seed in range(2)]
        expected = [results(each, form) for each in tensors]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in tensors]
        got: list[tuple[Tensor, ...]] = []
        for _ in range(20):
            got = []
            for stream, each in zip(streams, tensors, strict=True):
                with torch.cuda.stream(stream):
                    got.append(results(each, form))
        torch.cuda.synchronize()
        for outcome, right in zip(got, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(outcome, right, strict=True))

    def test_no_synchronisation(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        results(tensors, form)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(tensors, form)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_memory_does_not_grow(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        results(tensors, form)
        gc.collect()
        before = torch.cuda.memory_allocated()
        for _ in range(100):
            results(tensors, form)
        assert torch.cuda.memory_allocated() == before

    def test_launches(self, form: str) -> None:
        """At most three of our kernels forward and three backward, and no other kernel of the loss."""
        tensors = on_gpu(real_case(form), *STUDENT)
        upstream = torch.ones_like(loss_of(tensors, BACKEND, **FORMS[form]))
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            loss = loss_of(tensors, BACKEND, **FORMS[form])
            grad(loss, tensors.student, upstream)
            torch.cuda.synchronize()
        kernels = [event.name for event in recorded.events() if event.device_type.name == "CUDA"]
        ours = [name for name in kernels if "icd::cuda" in name]
        assert 0 < len(ours) <= 6, kernels

    def test_opcheck(self, form: str) -> None:
        tensors = on_gpu(replace(real_case(form), batch=3))
        maps = (tensors.student_features, tensors.teacher_features)
        problem = lower(make_options(**FORMS[form]), tensors.student_weight.shape[0], *(each.shape for each in maps))
        operators, options = torch.ops.icd_kernels, problem.options
        torch.library.opcheck(operators.icd_loss.default, (*tensors, *options, *problem[1:], True, True))
        logits = [torch.randn(3, tensors.student_weight.shape[0], 21, device="cuda") for _ in range(2)]
        torch.library.opcheck(operators.gram_kl.default, (*logits, *options, True))
        torch.library.opcheck(operators.region_logits.default, (*tensors[:3], (1, 2, 4), 0, True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_other_gpu() -> None:
    """Tensors on a GPU that is not the current one."""
    case = real_case("paper")
    expected = results(on_gpu(case, *STUDENT), "paper")
    tensors = case.tensors().mapped(lambda tensor: tensor.to("cuda:1")).requiring_grad(*STUDENT)
    got = results(tensors, "paper")
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, expected, strict=True))


class TestLinearClass:
    """Class form linear in K (docs/linear_class_gram.md), against the exact definition and the exact sum."""

    @pytest.mark.parametrize("form", ["automatic", "linear"])
    @pytest.mark.parametrize("classes", [2, 200, 1000])
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_worse_than_eager(self, monkeypatch: pytest.MonkeyPatch, kind: str, classes: int, form: str) -> None:
        if kind == "nodes hit" and classes == 2:
            pytest.skip("two classes are the ends alone: there is no node between them to hit")
        monkeypatch.setenv(SWITCH, form)
        student, teacher = (part.cuda() for part in logits(kind, classes))
        exact = loss_and_gradient(student, teacher, torch.float64, backend="reference")
        eager = loss_and_gradient(student, teacher, torch.float32, backend="reference")
        single = loss_and_gradient(student, teacher, torch.float32, backend=BACKEND)
        double = loss_and_gradient(student, teacher, torch.float64, backend=BACKEND)
        floors = 1e-6 * classes, gradient_terms(student, "none")
        for measured, allowed in zip(errors(single, exact, *floors), errors(eager, exact, *floors), strict=True):
            assert measured <= allowed + TOLERANCE
        assert max(errors(double, exact, 1e-2 * classes, floors[1])) < 2e-11

    @pytest.mark.parametrize("kind", ["gaussian", "close", "one point on a side"])
    def test_every_run_is_the_same(self, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        """A batch of many more cells than blocks."""
        monkeypatch.setenv(SWITCH, "linear")
        cells = [logits(kind, 1000, seed) for seed in range(21)]
        student, teacher = (torch.cat(parts, dim=2).float().cuda() for parts in zip(*cells, strict=True))
        student = (student * torch.linspace(0.5, 1, 128, device="cuda").view(-1, 1, 1)).requires_grad_()
        runs = []
        for _ in range(20):
            loss = gram_kl(student, teacher.expand_as(student), backend=BACKEND)
            runs.append((loss.detach(), *grad(loss, student)))
        assert all(torch.equal(a, b) for other in runs for a, b in zip(other, runs[0], strict=True))

    def test_automatic_is_one_of_the_two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which of them depends on what float64 costs on this GPU."""
        student, teacher = (part.cuda() for part in logits("gaussian", 1000))
        gradients = {}
        for form in ("exact", "linear", "automatic"):
            monkeypatch.setenv(SWITCH, form)
            gradients[form] = loss_and_gradient(student, teacher, torch.float32, backend=BACKEND)[1]
        assert not torch.equal(gradients["linear"], gradients["exact"])
        assert any(torch.equal(gradients["automatic"], gradients[form]) for form in ("linear", "exact"))

    def test_no_synchronisation_and_a_graph(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(SWITCH, "linear")
        case = replace(real_case("paper"), batch=8, classes=1000)
        tensors = on_gpu(case, *STUDENT)
        expected = results(tensors, "paper")
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(tensors, "paper")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results(tensors, "paper")
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = results(tensors, "paper")
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))

    @pytest.mark.parametrize("kind", ["gaussian", "wide", "close"])
    def test_many_classes(self, kind: str) -> None:
        """ImageNet-21k's classes, which no exact sum holds: against the method in float64 PyTorch."""
        student, teacher = logits(kind, 21841)
        single = loss_and_gradient(student.cuda(), teacher.cuda(), torch.float32, backend=BACKEND)
        loss, gradient = linear_reference.class_cell(student.flatten(), teacher.flatten(), 4.0)
        got = single[0].cpu(), single[1].cpu()
        assert max(errors(got, (loss, gradient.view_as(student)), 1.0)) < TOLERANCE


SANITIZER = shutil.which("compute-sanitizer")
SANITIZED = Path(__file__).with_name("sanitized_cuda.py")


@pytest.mark.skipif(SANITIZER is None, reason="there is no compute-sanitizer on the PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_compute_sanitizer(tool: str) -> None:
    command = [str(SANITIZER), "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=icd"]
    finished = subprocess.run(
        [*command, sys.executable, str(SANITIZED)], capture_output=True, text=True, check=False, timeout=900
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-2000:]


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid", "permuted"])
def test_region_features(layout: str, dtype: torch.dtype, pyramid: str) -> None:
    features = feature_map((16, 320, 7, 7), layout, dtype).cuda().requires_grad_()
    got, expected = (region_features(features, pyramid=pyramid, backend=name) for name in ("cuda", "reference"))
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(cells.square().sum(), features)[0] for cells in (got, expected)]
    torch.testing.assert_close(*gradients)
