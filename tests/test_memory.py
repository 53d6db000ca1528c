"""Memory: what is kept for the backward, and what is allocated on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import COMPILED, GRAMS, PYRAMIDS, REDUCTIONS, STUDENT, Case, Network, Tensors, loss_of
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from icd_kernels import gram_kl, region_logits

pytestmark = pytest.mark.parametrize("backend", COMPILED)

SINGLE: dict[str, Any] = {"dtype": torch.float32, "weight_dtype": torch.float32, "bias_dtype": torch.float32}
B, K, C, SIZE, N = 3, 61, 32, 16, 21


def tensors_of(layout: str = "contiguous") -> Tensors:
    """A map of 256 pixels, so that it is far larger than its 16 or 21 pooled cells."""
    network = Network(C, SIZE, SIZE, layout=layout, **SINGLE)
    return Case(B, K, network, network).tensors()


class Saved:
    """Numbers kept for the backward, but for those of the student's own parameters."""

    def __init__(self, *parameters: Tensor | None) -> None:
        self.parameters = {tensor.data_ptr() for tensor in parameters if tensor is not None}
        self.shapes: list[tuple[int, ...]] = []
        self.hooks = saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in self.parameters:
            self.shapes.append(tuple(tensor.shape))
        return tensor

    @property
    def numbers(self) -> int:
        return sum(torch.Size(shape).numel() for shape in self.shapes)


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
class TestSaved:
    """dl/dz and the pooled features, B·N·K + B·cells·C numbers; not the map, nothing of the teacher's, nothing K²."""

    def saved(self, backend: str, wanted: tuple[str, ...], **options: Any) -> Saved:
        tensors = tensors_of().requiring_grad(*wanted)
        saved = Saved(tensors.student_weight, tensors.student_bias)
        with saved.hooks:
            loss_of(tensors, backend, **options)
        return saved

    def test_for_all_gradients(self, backend: str, gram: str, pyramid: str, reduction: str) -> None:
        saved = self.saved(backend, STUDENT, gram=gram, pyramid=pyramid, reduction=reduction)
        networks = 2 if gram == "sample" and reduction == "none" else 1  # the gradient waits for the images' weights
        assert 0 < saved.numbers <= networks * B * N * K + B * N * C + B

    def test_for_the_features_alone(self, backend: str, gram: str, pyramid: str, reduction: str) -> None:
        """No pooled features."""
        saved = self.saved(backend, STUDENT[:1], gram=gram, pyramid=pyramid, reduction=reduction)
        networks = 2 if gram == "sample" and reduction == "none" else 1
        assert 0 < saved.numbers <= networks * B * N * K + B  # and the loss itself, which the caller has anyway

    def test_nothing_without_gradient(self, backend: str, gram: str, pyramid: str, reduction: str) -> None:
        options = {"gram": gram, "pyramid": pyramid, "reduction": reduction}
        assert self.saved(backend, (), **options).shapes == []
        with torch.no_grad():
            assert self.saved(backend, STUDENT, **options).shapes == []


def test_saved_by_the_other_functions(backend: str) -> None:
    tensors = tensors_of().requiring_grad(*STUDENT)
    saved = Saved(tensors.student_weight, tensors.student_bias)
    with saved.hooks:
        logits = region_logits(*tensors[:3], backend=backend)
    assert saved.numbers <= B * N * C
    saved = Saved()
    with saved.hooks:
        gram_kl(logits, logits.detach().roll(1), backend=backend)
    assert saved.numbers <= B * N * K


def test_the_map_is_let_go(backend: str) -> None:
    """Once the loss is computed, nobody but its owner holds the feature map's memory."""
    tensors = tensors_of().requiring_grad("student_weight")
    body = torch.nn.Conv2d(C, C, 1)
    features = body(tensors.student_features)
    storage = StorageWeakRef(features.untyped_storage())
    loss = loss_of(tensors._replace(student_features=features), backend)
    del features
    assert storage.expired()
    loss.backward()
    assert body.weight.grad is not None


def allocations(function: Any) -> list[int]:
    """Bytes of every allocation PyTorch's allocator makes while `function` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("gram", GRAMS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "token_grid", "token_slice", "permuted"])
def test_no_copy_of_a_map_and_no_gram(backend: str, gram: str, layout: str) -> None:
    """Forward: no single allocation as large as a map or as the class Gram of one image. Backward: one map, its own."""
    tensors = tensors_of(layout).requiring_grad(*STUDENT)
    map_bytes = 4 * tensors.student_features.numel()
    loss = loss_of(tensors, backend, gram=gram)
    forward = allocations(lambda: loss_of(tensors, backend, gram=gram))
    assert forward
    assert max(forward) < min(map_bytes, 4 * N * K * K)
    backward = allocations(lambda: torch.autograd.grad(loss, tensors.student))
    assert [size for size in backward if size >= map_bytes] == [map_bytes]
