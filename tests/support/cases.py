"""Drawing of inputs: two networks' tensors of any shape, layout and dtype, and the options of the loss.

A `Case` is plain numbers and words, so that a failing one can be read and made again; `Case.tensors()` makes it.
The sizes drawn are bounded by `Limits`: a slow backend (the Triton interpreter) draws from smaller ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from icd_kernels import icd_loss
from icd_kernels.backends import BACKENDS
from icd_kernels.geometry import cell_count
from icd_kernels.options import NORMALIZATIONS

GRAMS = ("class", "spatial", "sample")
PYRAMIDS = ("adaptive", "nested")
REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

STUDENT = ("student_features", "student_weight", "student_bias")

CASES_RUN: Counter[str] = Counter()
"""Property-test cases run, by property; the terminal summary prints them."""


def compiled_backends(device_type: str = "cpu") -> list[Any]:
    """Parameters for a test of every compiled backend of `device_type`; one that is missing is skipped by name."""
    parameters = []
    for backend in BACKENDS:
        if backend.device_types is None or device_type not in backend.device_types:
            continue
        missing = f"backend {backend.name!r} is missing: {backend.missing}"
        marks = () if backend.missing is None else (pytest.mark.skip(reason=missing),)
        parameters.append(pytest.param(backend.name, marks=marks))
    return parameters


COMPILED = compiled_backends()
EVERY_BACKEND = [*COMPILED, pytest.param("reference")]


FORMS = [
    pytest.param({}, id="paper"),
    pytest.param({"gram": "spatial", "pyramid": "nested", "normalize": "l2", "reduction": "sum"}, id="released"),
    pytest.param({"gram": "sample", "normalize": "zscore", "scales": (3, 1)}, id="sample-overlapping"),
    pytest.param({"gram": "sample", "reduction": "none"}, id="sample-none"),
    pytest.param({"reduction": "none", "scale_weights": (0.0, 1.0, 0.5)}, id="class-none"),
]
"""Options that between them take every way through a backend, where the whole grid would take too long."""


class Tensors(NamedTuple):
    """The six tensors of the loss."""

    student_features: Tensor
    student_weight: Tensor
    student_bias: Tensor | None
    teacher_features: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None

    @property
    def student(self) -> tuple[Tensor, ...]:
        """The student's features, weight and bias (a case with one)."""
        return tuple(tensor for tensor in self[:3] if tensor is not None)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Tensors:
        return Tensors(*(None if tensor is None else function(tensor) for tensor in self))  # type: ignore[arg-type]

    def requiring_grad(self, *names: str) -> Tensors:
        """The same values and strides as leaves, of which those named require a gradient."""
        leaves = self.mapped(torch.Tensor.detach)
        for name in names:
            tensor = getattr(leaves, name)
            if tensor is not None:
                tensor.requires_grad_()
        return leaves


LAYOUTS: dict[str, Callable[[int, int, int, int], Tensor]] = {
    "contiguous": lambda b, c, h, w: torch.empty(b, c, h, w),
    "channels_last": lambda b, c, h, w: torch.empty(b, h, w, c).permute(0, 3, 1, 2),
    "token_grid": lambda b, c, h, w: torch.empty(b, h * w, c).transpose(1, 2).unflatten(2, (h, w)),
    "token_slice": lambda b, c, h, w: torch.empty(b, 1 + h * w, c)[:, 1:].transpose(1, 2).unflatten(2, (h, w)),
    "permuted": lambda b, c, h, w: torch.empty(w, b, h, c).permute(1, 3, 2, 0),
    "every_second": lambda b, c, h, w: torch.empty(2 * b, 2 * c, h + 1, 2 * w)[::2, 1::2, 1:, ::2],
    "expanded_batch": lambda b, c, h, w: torch.empty(1, c, h, w).expand(b, c, h, w),
    "expanded_pixels": lambda b, c, h, w: torch.empty(b, c, 1, 1).expand(b, c, h, w),
}
"""Feature maps (B, C, H, W) by how they lie in memory; strides are taken from these, values are drawn."""

WEIGHT_LAYOUTS: dict[str, Callable[[int, int], Tensor]] = {
    "contiguous": lambda k, c: torch.empty(k, c),
    "transposed": lambda k, c: torch.empty(c, k).t(),
    "every_second": lambda k, c: torch.empty(2 * k, c + 3)[::2, 2:-1],
}


def feature_map(
    shape: tuple[int, int, int, int],
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    magnitude: float = 1.0,
) -> Tensor:
    """Normal values of `magnitude` in the memory layout `layout`."""
    return _filled(LAYOUTS[layout](*shape), dtype, seed, magnitude)


def head_weight(
    shape: tuple[int, int],
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    magnitude: float = 1.0,
) -> Tensor:
    """Normal values of `magnitude` (K, C) in the memory layout `layout`."""
    return _filled(WEIGHT_LAYOUTS[layout](*shape), dtype, seed, magnitude)


def _filled(skeleton: Tensor, dtype: torch.dtype, seed: int, magnitude: float) -> Tensor:
    """A tensor with `skeleton`'s size, strides and offset, of normal values."""
    values = torch.randn(
        skeleton.untyped_storage().nbytes() // skeleton.element_size(),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(seed),
    )
    storage = (values * magnitude).to(dtype)
    return storage.as_strided(skeleton.size(), skeleton.stride(), skeleton.storage_offset())


@dataclass(frozen=True)
class Network:
    """One network's side of a case."""

    channels: int = 3
    height: int = 4
    width: int = 4
    layout: str = "contiguous"
    weight_layout: str = "contiguous"
    dtype: torch.dtype = torch.float64
    weight_dtype: torch.dtype = torch.float64
    bias_dtype: torch.dtype | None = torch.float64
    """None is no bias."""
    magnitude: float = 1.0

    def tensors(self, batch: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
        shape = (batch, self.channels, self.height, self.width)
        features = feature_map(shape, self.layout, self.dtype, seed, self.magnitude)
        spread = self.channels**-0.5
        weight = head_weight((classes, self.channels), self.weight_layout, self.weight_dtype, seed + 1, spread)
        if self.bias_dtype is None:
            return features, weight, None
        return features, weight, head_weight((classes, 1), "contiguous", self.bias_dtype, seed + 2)[:, 0]


@dataclass(frozen=True)
class Case:
    """Two networks on one batch, and the options."""

    batch: int = 2
    classes: int = 5
    student: Network = Network()
    teacher: Network = Network(channels=2, height=5, width=3)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int = 1

    def tensors(self) -> Tensors:
        student = self.student.tensors(self.batch, self.classes, 10 * self.seed)
        teacher = self.teacher.tensors(self.batch, self.classes, 10 * self.seed + 5)
        return Tensors(*student, *teacher)

    def local_logits(self) -> tuple[Tensor, Tensor]:
        """Student's and teacher's (B, K, N), in each network's dtype and with strides by its layout."""
        cells = cell_count(self.options.get("scales", (1, 2, 4)))
        shape = (self.batch, self.classes, cells, 1)
        seed = 10 * self.seed
        student = feature_map(shape, self.student.layout, self.student.dtype, seed, self.student.magnitude)
        teacher = feature_map(shape, self.teacher.layout, self.teacher.dtype, seed + 5, self.teacher.magnitude)
        return student.squeeze(3), teacher.squeeze(3)


@dataclass(frozen=True)
class Limits:
    """The largest sizes to draw."""

    batch: int = 5
    channels: int = 70
    side: int = 18
    classes: int = 40
    fewest_classes: int = 2
    scale: int = 5
    scales: int = 4


def network_strategy(limits: Limits) -> st.SearchStrategy[Network]:
    side = st.integers(1, limits.side)
    dtype = st.sampled_from(DTYPES)
    return st.builds(
        Network,
        channels=st.integers(1, limits.channels),
        height=side,
        width=side,
        layout=st.sampled_from(sorted(LAYOUTS)),
        weight_layout=st.sampled_from(sorted(WEIGHT_LAYOUTS)),
        dtype=dtype,
        weight_dtype=dtype,
        bias_dtype=st.none() | dtype,
        magnitude=st.sampled_from((0.1, 1.0, 5.0)),
    )


@st.composite
def options_strategy(draw: st.DrawFn, limits: Limits) -> dict[str, Any]:
    usual = [scales for scales in ((1, 2, 4), (1, 2), (1,), (4, 2, 1)) if max(scales) <= limits.scale]
    any_scales = st.lists(st.integers(1, limits.scale), min_size=1, max_size=limits.scales).map(tuple)
    scales = draw(st.sampled_from(usual) | any_scales)
    weight = st.sampled_from((0.0, 0.25, 1.0, 3.0))
    weights = st.lists(weight, min_size=len(scales), max_size=len(scales)).map(tuple)
    return {
        "scales": scales,
        "gram": draw(st.sampled_from(GRAMS)),
        "pyramid": draw(st.sampled_from(PYRAMIDS)),
        "normalize": draw(st.sampled_from(NORMALIZATIONS)),
        "temperature": draw(st.sampled_from((0.3, 1.0, 2.0, 4.0, 20.0))),
        "scale_weights": draw(st.none() | weights),
        "reduction": draw(st.sampled_from(REDUCTIONS)),
    }


def case_strategy(limits: Limits | None = None) -> st.SearchStrategy[Case]:
    limits = limits or Limits()
    return st.builds(
        Case,
        batch=st.integers(1, limits.batch),
        classes=st.integers(limits.fewest_classes, limits.classes),
        student=network_strategy(limits),
        teacher=network_strategy(limits),
        options=options_strategy(limits),
        seed=st.integers(0, 1000),
        threads=st.integers(1, 3),
    )


def option_grid(**fixed: Any) -> list[Any]:
    """Every Gram x pyramid x normalize x reduction as test parameters; `fixed` holds one of them (or more) still."""
    choices = {"gram": GRAMS, "pyramid": PYRAMIDS, "normalize": NORMALIZATIONS, "reduction": REDUCTIONS}
    grid: list[dict[str, Any]] = [dict(fixed)]
    for name, values in choices.items():
        if name not in fixed:
            grid = [{**options, name: value} for options in grid for value in values]
    return [pytest.param(options, id="-".join(str(options[name]) for name in choices)) for options in grid]


def loss_of(tensors: Tensors, backend: str, **options: Any) -> Tensor:
    """`icd_loss` of a `Tensors`."""
    student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias = tensors
    networks = (student_features, student_weight, teacher_features, teacher_weight, student_bias, teacher_bias)
    return icd_loss(*networks, backend=backend, **options)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
