"""The loss in the steps people train with: micro-batches, mixed precision with a scaler, a compiled step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from cases import EVERY_BACKEND
from small_network import SmallNetwork
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import SGD

from icd_kernels import ICDLoss, NetworkOutput, make_objective

BATCH, CLASSES = 8, 6


class Setting(NamedTuple):
    """A student to train, its teacher, and a batch."""

    student: SmallNetwork
    teacher: SmallNetwork
    images: Tensor
    labels: Tensor

    @property
    def gradient(self) -> Tensor:
        """Of all the student's parameters, one after the other."""
        grads = (parameter.grad for parameter in self.student.parameters())
        return torch.cat([one.flatten() for one in grads if one is not None])


Loss = Callable[[NetworkOutput, NetworkOutput, Tensor], Tensor]


def setting(dtype: torch.dtype = torch.float32) -> Setting:
    """The same every time."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 11, 13, generator=generator).to(dtype)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    student, teacher = SmallNetwork(5, CLASSES, seed=1), SmallNetwork(7, CLASSES, seed=2)
    return Setting(student.to(dtype), teacher.to(dtype), images, labels)


def icd(backend: str, **options: Any) -> Loss:
    module = ICDLoss(backend=backend, **options)
    return lambda student, teacher, _labels: module(student.features, student.head, teacher.features, teacher.head)


def objective(backend: str) -> Loss:
    module = make_objective("icd-kd", num_classes=CLASSES, backend=backend)
    return lambda student, teacher, labels: module(student, teacher, labels).total


def loss_of(case: Setting, loss: Loss, rows: slice = slice(None)) -> Tensor:
    with torch.no_grad():
        teacher = case.teacher(case.images[rows])
    return loss(case.student(case.images[rows]), teacher, case.labels[rows])


def micro_batches_error(loss: Loss, count: int) -> float:
    """How far the gradient of `count` micro-batches is from that of the batch, in parts of the largest element."""
    whole, parts = setting(torch.float64), setting(torch.float64)
    loss_of(whole, loss).backward()
    size = BATCH // count
    for start in range(0, BATCH, size):
        (loss_of(parts, loss, slice(start, start + size)) / count).backward()
    return float((parts.gradient - whole.gradient).abs().max() / whole.gradient.abs().max())


@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestAccumulation:
    @pytest.mark.parametrize("count", [2, 8])
    @pytest.mark.parametrize("gram", ["class", "spatial"])
    def test_micro_batches(self, backend: str, gram: str, count: int) -> None:
        """A mean over images: each of k micro-batches counts 1/k."""
        assert micro_batches_error(icd(backend, gram=gram), count) < 1e-14

    def test_objective(self, backend: str) -> None:
        assert micro_batches_error(objective(backend), 4) < 1e-14

    def test_images_that_are_compared_belong_in_one_batch(self, backend: str) -> None:
        assert micro_batches_error(icd(backend, gram="sample"), 2) > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", EVERY_BACKEND)
class TestMixedPrecision:
    @pytest.mark.parametrize("scale", [1.0, 2.0**12])
    def test_unscaled_gradient(self, backend: str, dtype: torch.dtype, scale: float) -> None:
        """Autocast rounds the maps, not the math: the gradient is float32's to the rounding of the maps."""
        plain, mixed = setting(), setting()
        loss_of(plain, objective(backend)).backward()
        optimizer, scaler = SGD(mixed.student.parameters(), lr=0.1), GradScaler("cpu", init_scale=scale)
        with torch.autocast("cpu", dtype):
            loss = loss_of(mixed, objective(backend))
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        error = (mixed.gradient - plain.gradient).norm() / plain.gradient.norm()
        assert error < torch.finfo(dtype).eps

    def test_an_overflow_skips_the_step(self, backend: str, dtype: torch.dtype) -> None:
        """Infinity in a map is not hidden from the scaler."""
        case = setting()
        before = [parameter.detach().clone() for parameter in case.student.parameters()]
        optimizer, scaler = SGD(case.student.parameters(), lr=0.1), GradScaler("cpu", init_scale=8.0)
        case.images[0, 0, 0, 0] = float("inf")
        with torch.autocast("cpu", dtype):
            loss = loss_of(case, icd(backend))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 4.0
        torch.testing.assert_close(list(case.student.parameters()), before, rtol=0, atol=0)


class TestCompile:
    """The objective with both networks, against the step that is not compiled."""

    @pytest.mark.parametrize("compiler", ["aot_eager", "aot_eager_decomp_partition"])
    @pytest.mark.parametrize("backend", EVERY_BACKEND)
    def test_in_one_graph(self, backend: str, compiler: str) -> None:
        """As dispatched, and as inductor is given it: decomposed, with what backward needs chosen anew."""
        plain, traced = setting(), setting()
        loss = objective(backend)
        expected = loss_of(plain, loss)
        torch._dynamo.reset()
        got = torch.compile(lambda: loss_of(traced, loss), fullgraph=True, backend=compiler)()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
        expected.backward()
        got.backward()
        torch.testing.assert_close(traced.gradient, plain.gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("backend", EVERY_BACKEND)
    def test_whole_step(self, backend: str) -> None:
        """Backward and the optimizer in the compiled function: PyTorch itself breaks the graph there."""
        cases = setting(), setting()
        for case, compiled in zip(cases, (False, True), strict=True):
            step = training_step(case, objective(backend))
            torch._dynamo.reset()
            run = torch.compile(step, backend="aot_eager") if compiled else step
            for _ in range(3):
                run()
        parameters = (list(case.student.parameters()) for case in cases)
        torch.testing.assert_close(*parameters, rtol=1e-5, atol=1e-7)


def training_step(case: Setting, loss: Loss) -> Callable[[], None]:
    optimizer = SGD(case.student.parameters(), lr=0.05, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss_of(case, loss).backward()
        optimizer.step()

    return step
