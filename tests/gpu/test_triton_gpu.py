"""The Triton backend on a CUDA GPU: real shapes, and everything only a GPU has (`make gpu`)."""

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
from cases import (
    CASES_RUN,
    GRAMS,
    STUDENT,
    Case,
    Limits,
    Network,
    Tensors,
    case_strategy,
    feature_map,
    loss_of,
    option_grid,
)
from hypothesis import given, seed, settings
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem
from test_linear_class import KINDS, SWITCH, TOLERANCE, errors, gradient_terms, logits, loss_and_gradient
from torch.autograd import grad, gradcheck

from icd_kernels import available_backends, region_features
from icd_kernels.backends import linear_reference
from icd_kernels.backends.triton.operators import OPERATORS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif("triton" not in available_backends(), reason="needs Triton 3.6 or newer"),
]

TRITON = "triton"
LIMITS = Limits(batch=9, channels=200, side=15, classes=200, scale=5, scales=4)
FORMS = {
    "paper": {"gram": "class", "pyramid": "adaptive", "normalize": "none", "temperature": 4.0},
    "released": {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0},
    "sample": {"gram": "sample", "pyramid": "adaptive", "normalize": "l2", "temperature": 1.0},
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


def results(tensors: Tensors, **options: Any) -> tuple[torch.Tensor, ...]:
    loss = loss_of(tensors, TRITON, **options)
    return loss.detach(), *grad(loss.sum(), tensors.student)


def real_case(form: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Case:
    student = Network(320, 7, 7, layout, "contiguous", dtype, dtype, dtype)
    teacher = Network(256, 28, 28, layout, "contiguous", dtype, dtype, dtype)
    return Case(batch=16, classes=200, student=student, teacher=teacher, options=FORMS[form])


@pytest.mark.parametrize("part", range(12))
@pytest.mark.parametrize("problem", [icd_loss_problem, region_logits_problem, gram_kl_problem])
def test_drawn_cases(problem: Callable[[Case], Problem], part: int) -> None:
    """Each drawn shape is compiled anew, so there are fewer than on the CPU, in parts that workers can share."""

    @seed(part)
    @given(case=case_strategy(LIMITS))
    @settings(max_examples=4, deadline=None, derandomize=False, database=None)
    def check(case: Case) -> None:
        CASES_RUN[f"{problem.__name__.removesuffix('_problem')} by triton on the GPU"] += 1
        assert_no_worse_than_eager(problem(case).on("cuda"), TRITON)

    check()


@pytest.mark.parametrize("form", sorted(FORMS))
class TestRealShapes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid", "permuted"])
    def test_no_worse_than_eager(self, form: str, dtype: torch.dtype, layout: str) -> None:
        assert_no_worse_than_eager(icd_loss_problem(real_case(form, dtype, layout)).on("cuda"), TRITON)

    def test_every_run_is_the_same(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        expected = results(tensors, **FORMS[form])
        for _ in range(100):
            for got, first in zip(results(tensors, **FORMS[form]), expected, strict=True):
                assert torch.equal(got, first)

    def test_graph_capture_and_replay(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        expected = results(tensors, **FORMS[form])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                results(tensors, **FORMS[form])
        torch.cuda.current_stream().wait_stream(stream)
        graphs, captured = [], []
        for _ in range(2):
            graphs.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graphs[-1]):
                captured.append(results(tensors, **FORMS[form]))
        streams = [torch.cuda.Stream() for _ in graphs]
        for _ in range(20):
            for graph, side in zip(graphs, streams, strict=True):
                with torch.cuda.stream(side):
                    graph.replay()
        torch.cuda.synchronize()
        for outcome in captured:
            for got, first in zip(outcome, expected, strict=True):
                assert torch.equal(got, first)

    def test_two_streams(self, form: str) -> None:
        cases = [replace(real_case(form), seed=seed) for seed in range(2)]
        tensors = [on_gpu(case, *STUDENT) for case in cases]
        expected = [results(each, **FORMS[form]) for each in tensors]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in cases]
        for _ in range(20):
            got = []
            for stream, each in zip(streams, tensors, strict=True):
                with torch.cuda.stream(stream):
                    got.append(results(each, **FORMS[form]))
        torch.cuda.synchronize()
        for outcome, right in zip(got, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(outcome, right, strict=True))

    def test_compile(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        compiled = torch.compile(lambda t: loss_of(t, TRITON, **FORMS[form]), fullgraph=True)
        loss = compiled(tensors)
        got = (loss.detach(), *grad(loss, tensors.student))
        assert all(torch.equal(a, b) for a, b in zip(got, results(tensors, **FORMS[form]), strict=True))

    def test_autocast_and_scaler(self, form: str) -> None:
        tensors = on_gpu(real_case(form, torch.float16), *STUDENT)
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(tensors, TRITON, **FORMS[form])
        assert loss.dtype == torch.float32
        scaled = torch.amp.GradScaler("cuda").scale(loss)
        assert all(gradient.dtype == torch.float16 for gradient in grad(scaled, tensors.student))

    def test_memory_does_not_grow(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        results(tensors, **FORMS[form])
        gc.collect()
        before = torch.cuda.memory_allocated()
        for _ in range(200):
            results(tensors, **FORMS[form])
        assert torch.cuda.memory_allocated() == before

    def test_no_synchronisation(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        results(tensors, **FORMS[form])
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(tensors, **FORMS[form])
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_launches(self, form: str) -> None:
        tensors = on_gpu(real_case(form), *STUDENT)
        options = {**FORMS[form], "reduction": "sum"}
        upstream = torch.ones((), device="cuda")
        grad(loss_of(tensors, TRITON, **options), tensors.student, upstream)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            grad(loss_of(tensors, TRITON, **options), tensors.student, upstream)
            torch.cuda.synchronize()
        names = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
        assert names == ["icd_loss_kernel", "backward_kernel"]


@pytest.mark.parametrize("options", option_grid())
def test_gradcheck(options: dict[str, Any]) -> None:
    case = Case(classes=3, student=Network(2, 2, 3), teacher=Network(2, 2, 2), options={"scales": (1, 2), **options})
    tensors = on_gpu(case, *STUDENT)
    assert gradcheck(
        lambda *student: loss_of(tensors._replace(**dict(zip(STUDENT, student, strict=True))), TRITON, **case.options),
        tensors.student,
    )


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(gram: str, reduction: str) -> None:
    tensors = on_gpu(Case(classes=3))
    operators = getattr(torch.ops, OPERATORS)
    options = ((1, 2), (0.5, 0.5), gram, "nested", "l2", 2.0, reduction)
    torch.library.opcheck(operators.icd_loss.default, (*tensors, *options, True, True))
    outcome = operators.icd_loss(*tensors, *options, True, True)
    features, weight = tensors.student[:2]
    layout = (features.shape, features.stride(), features.dtype, weight.dtype)
    arguments = (outcome[0], *outcome[1:], weight, *layout, *options, (True, True, True))
    torch.library.opcheck(operators.icd_loss_backward.default, arguments)


def test_offsets_beyond_32_bits() -> None:
    """The last of many images lies more than 2^31 elements into the map; every image is the same."""
    batch, channels, side = 4096, 2816, 14
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GB of free GPU memory")
    one = torch.randn(1, channels, side, side, device="cuda", dtype=torch.bfloat16)
    features = one.repeat(batch, 1, 1, 1).requires_grad_()
    weight = torch.randn(4, channels, device="cuda", dtype=torch.bfloat16) * channels**-0.5
    tensors = Tensors(features, weight, None, one.flip(1).expand(batch, -1, -1, -1), weight, None)
    loss = loss_of(tensors, TRITON, **FORMS["released"], reduction="none")
    assert features.numel() > 2**31
    assert torch.equal(loss, loss[:1].expand(batch))
    (gradient,) = grad(loss.sum(), features)
    assert torch.equal(gradient[-1], gradient[0])
    assert gradient[0].any()


def test_many_classes() -> None:
    """ImageNet-21k's classes in class form, without any K x K matrix."""
    student, teacher = Network(64, 2, 2, dtype=torch.float32), Network(64, 2, 2, dtype=torch.float32)
    case = Case(batch=2, classes=21841, student=student, teacher=teacher, options={"scales": (1,)})
    tensors = on_gpu(case, *STUDENT)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    assert all(result.isfinite().all() for result in results(tensors, **case.options))
    assert torch.cuda.max_memory_allocated() - before < 200 * 2**20


@pytest.mark.parametrize("form", ["automatic", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_class(monkeypatch: pytest.MonkeyPatch, kind: str, form: str) -> None:
    """Class form linear in K (docs/linear_class_gram.md), against the exact definition."""
    monkeypatch.setenv(SWITCH, form)
    student, teacher = (part.cuda() for part in logits(kind, 700))
    exact = loss_and_gradient(student, teacher, torch.float64, backend="reference")
    eager = loss_and_gradient(student, teacher, torch.float32, backend="reference")
    single = loss_and_gradient(student, teacher, torch.float32, backend=TRITON)
    double = loss_and_gradient(student, teacher, torch.float64, backend=TRITON)
    floors = 1e-6 * 700, gradient_terms(student, "none")
    for measured, allowed in zip(errors(single, exact, *floors), errors(eager, exact, *floors), strict=True):
        assert measured <= allowed + TOLERANCE
    assert max(errors(double, exact, 1e-2 * 700, floors[1])) < 2e-11


@pytest.mark.parametrize("kind", ["gaussian", "wide", "close"])
def test_linear_class_of_many_classes(kind: str) -> None:
    """ImageNet-21k's classes, which no exact sum holds: against the method in float64 PyTorch."""
    student, teacher = logits(kind, 21841)
    single = loss_and_gradient(student.cuda(), teacher.cuda(), torch.float32, backend=TRITON)
    loss, gradient = linear_reference.class_cell(student.flatten(), teacher.flatten(), 4.0)
    got = single[0].cpu(), single[1].cpu()
    assert max(errors(got, (loss, gradient.view_as(student)), 1.0)) < TOLERANCE


SANITIZED = """
import torch
from icd_kernels import icd_loss
for gram in ("class", "spatial", "sample"):
    for reduction in ("mean", "none"):
        features = [torch.randn(3, c, 7, 7, device="cuda", requires_grad=True) for c in (70, 40)]
        weights = [torch.randn(33, c, device="cuda", requires_grad=True) for c in (70, 40)]
        loss = icd_loss(features[0], weights[0], features[1], weights[1], gram=gram, reduction=reduction,
                        scales=(1, 2), backend="triton")
        loss.sum().backward()
torch.cuda.synchronize()
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str, tmp_path: Path) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        pytest.skip("needs compute-sanitizer (CUDA toolkit)")
    script = tmp_path / "small_case.py"
    script.write_text(SANITIZED)
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, str(script)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid", "permuted"])
def test_region_features(layout: str, dtype: torch.dtype, pyramid: str) -> None:
    features = feature_map((16, 320, 7, 7), layout, dtype).cuda().requires_grad_()
    got, expected = (region_features(features, pyramid=pyramid, backend=name) for name in (TRITON, "reference"))
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(cells.square().sum(), features)[0] for cells in (got, expected)]
    torch.testing.assert_close(*gradients)
