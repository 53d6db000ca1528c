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
from cases import CASES_RUN, STUDENT, Case, Limits, Network, Tensors, case_strategy, loss_of, option_grid
from hypothesis import given, settings
from judging import Problem, assert_no_worse_than_eager, gram_kl_problem, icd_loss_problem, region_logits_problem
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.profiler import ProfilerActivity, profile

from icd_kernels.backends.cuda import CUDA
from icd_kernels.operators import SCHEMAS
from icd_kernels.options import make_options

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
        options = make_options(**FORMS[form])
        assert len(SCHEMAS) == 6
        torch.library.opcheck(torch.ops.icd_kernels.icd_loss.default, (*tensors, *options, True, True))
        gram_options = [value for name, value in options._asdict().items() if name != "pyramid"]
        logits = [torch.randn(3, 7, 21, device="cuda") for _ in range(2)]
        torch.library.opcheck(torch.ops.icd_kernels.gram_kl.default, (*logits, *gram_options, True))
        network = tensors[:3]
        torch.library.opcheck(torch.ops.icd_kernels.region_logits.default, (*network, (1, 2, 4), "adaptive", True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_other_gpu() -> None:
    """Tensors on a GPU that is not the current one."""
    case = real_case("paper")
    expected = results(on_gpu(case, *STUDENT), "paper")
    tensors = case.tensors().mapped(lambda tensor: tensor.to("cuda:1")).requiring_grad(*STUDENT)
    got = results(tensors, "paper")
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, expected, strict=True))


def test_many_classes() -> None:
    """ImageNet-21k's classes: far more than a chunk of columns."""
    network = Network(8, 2, 2, dtype=torch.float32, weight_dtype=torch.float32, bias_dtype=None)
    case = Case(batch=1, classes=21841, student=network, teacher=network, options={"scales": (1,)})
    tensors = on_gpu(case, *STUDENT[:2])
    loss = loss_of(tensors, BACKEND, scales=(1,))
    gradients = grad(loss, (tensors.student_features, tensors.student_weight))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


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
