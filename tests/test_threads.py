"""Threads: the same bits in every run at one count, and the same numbers at every count."""

from __future__ import annotations

import pytest
import torch
from cases import COMPILED, GRAMS, STUDENT, Case, Network, loss_of, torch_threads
from torch import Tensor
from torch.autograd import grad


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("pyramid", ["adaptive", "nested"])
class TestThreads:
    def results(self, backend: str, gram: str, pyramid: str, threads: int) -> tuple[Tensor, ...]:
        single = {"dtype": torch.float32, "weight_dtype": torch.float32, "bias_dtype": torch.float32}
        student, teacher = Network(48, 14, 14, **single), Network(64, 28, 28, **single)  # type: ignore[arg-type]
        tensors = Case(batch=6, classes=50, student=student, teacher=teacher).tensors().requiring_grad(*STUDENT)
        with torch_threads(threads):
            loss = loss_of(tensors, backend, gram=gram, pyramid=pyramid)
            return loss.detach(), *grad(loss, tensors.student)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_every_run_gives_the_same_bits(self, backend: str, gram: str, pyramid: str, threads: int) -> None:
        first = self.results(backend, gram, pyramid, threads)
        for _ in range(5):
            for one, other in zip(first, self.results(backend, gram, pyramid, threads), strict=True):
                assert torch.equal(one, other)

    def test_more_of_them_change_the_rounding_only(self, backend: str, gram: str, pyramid: str) -> None:
        alone = self.results(backend, gram, pyramid, 1)
        for threads in (2, 3, 7):
            for one, other in zip(alone, self.results(backend, gram, pyramid, threads), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=4e-6 * float(one.abs().max()))
