"""The account of memory traffic (`benchmarks/launch_accesses.py`) against what the interpreter loads and stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES_RUN, STUDENT, Case, Limits, Network, case_strategy, loss_of
from hypothesis import Phase, given, settings
from torch.autograd import grad
from triton.runtime import interpreter

from benchmarks import traffic
from benchmarks.accesses import DZ, EVERY_DZ, NODES, ExactSum, Launch, LinearSum, Nodes, PairsAgain, Problem
from benchmarks.launch_accesses import CELLS, PARTS, UPSTREAM, backward, forward, plan_backward, plan_forward
from icd_kernels.backends.triton import class_gram, configs, exact_class, pair_gram
from icd_kernels.backends.triton.operators import interprets
from icd_kernels.backends.triton.plan import layout
from icd_kernels.checks import compute_dtype
from icd_kernels.options import make_options

if not interprets():
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from programs import interpreted

NETWORK = {"p_features": "features", "p_weight": "weight", "p_bias": "bias", "p_pooled": "pooled features"}
BUFFERS = {
    **{f"{name}.{field}": f"{name}'s {what}" for name in ("student", "teacher") for field, what in NETWORK.items()},
    "student.p_logits": "student's projected logits",
    "teacher.p_logits": "teacher's projected logits",
    "work.p_student": "student's logits",
    "work.p_teacher": "teacher's logits",
    "work.p_divisor": "norms",
    "work.p_rows": "normalisers of rows",
    "work.p_nodes": NODES,
    "work.p_unit_loss": "losses of matrices",
    "work.p_image_loss": "losses of images",
    "work.p_loss": "loss",
    "work.p_gradient": EVERY_DZ,
    "work.p_saved": DZ,
    "job.p_gradient": DZ,
    "job.p_upstream": UPSTREAM,
    "job.p_scale": UPSTREAM,
    "job.p_pooled": "student's pooled features",
    "job.p_weight": "student's weight",
    "job.p_cells": CELLS,
    "job.p_partial": PARTS,
    "job.p_features": "gradient by the student's features",
    "job.p_weight_gradient": "gradient by the student's weight",
    "job.p_bias_gradient": "gradient by the student's bias",
}
"""The kernels' pointers by what the account calls them."""

RELEASED: dict[str, Any] = {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0}
PAPER: dict[str, Any] = {"gram": "class", "pyramid": "adaptive", "normalize": "none", "temperature": 4.0}
HALF: dict[str, Any] = {"dtype": torch.bfloat16, "weight_dtype": torch.bfloat16, "bias_dtype": torch.bfloat16}
SINGLE: dict[str, Any] = {"dtype": torch.float32, "weight_dtype": torch.float32, "bias_dtype": torch.float32}


@dataclass
class Seen:
    """What one launch loaded and stored, where masks held."""

    tensors: dict[str, torch.Tensor]
    """By the buffer's name."""
    counters: torch.Tensor
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By "loaded" or "stored", and the buffer."""
    places: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """Addresses, by the same."""

    def note(self, way: str, pointers: Any, mask: Any) -> None:
        data, held = np.broadcast_arrays(pointers.data, mask.data)
        left = data[held].astype(np.int64)
        for buffer, tensor in {**self.tensors, "": self.counters}.items():
            start = tensor.data_ptr()
            is_inside = (left >= start) & (left < start + tensor.element_size() * _extent(tensor))
            if buffer and is_inside.any():
                self.bytes[way, buffer] += tensor.element_size() * int(is_inside.sum())
                self.places.setdefault((way, buffer), set()).update(left[is_inside].tolist())
            left = left[~is_inside]
        assert left.size == 0, f"{way}: {left.size} elements of no buffer"

    @property
    def once(self) -> int:
        """Bytes, each place counted once for loads and once for stores."""
        return sum(self.tensors[buffer].element_size() * len(places) for (_, buffer), places in self.places.items())


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


@dataclass
class Recording:
    """Of a training step: its launches, and the sums that the values made of them."""

    launches: list[Seen] = field(default_factory=list)
    sums: Counter[ExactSum | LinearSum | PairsAgain] = field(default_factory=Counter)
    again: int = 0
    """Blocks of rows summed again since the last class Gram began."""


@contextmanager
def recorded() -> Iterator[Recording]:
    """Launches within are interpreted, and noted."""
    recording = Recording()
    with interpreted(), pytest.MonkeyPatch.context() as monkeypatch:
        _note_launches(monkeypatch, recording)
        _note_sums(monkeypatch, recording)
        yield recording


def _note_launches(monkeypatch: pytest.MonkeyPatch, recording: Recording) -> None:
    begin, builder = interpreter.GridExecutor._init_args_hst, interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def note_begin(self: Any, args: Any, kwargs: Any) -> Any:
        given, named = begin(self, args, kwargs)
        values = dict(zip(self.arg_names, given, strict=False))  # the rest are constants, by name
        recording.launches.append(Seen(_buffers(values), values["counters"].p_all))
        return given, named

    def note_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        recording.launches[-1].note("loaded", pointers, mask)
        return load(self, pointers, mask, *rest)

    def note_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        recording.launches[-1].note("stored", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", note_begin)
    monkeypatch.setattr(builder, "create_masked_load", note_load)
    monkeypatch.setattr(builder, "create_masked_store", note_store)


def _buffers(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every tensor of a launch but counters, once."""
    found = {}
    for path, buffer in BUFFERS.items():
        group, name = path.split(".")
        tensor = getattr(given.get(group), name, None)
        if tensor is not None and tensor.numel():
            found[buffer] = tensor
    if "work" in given:
        if given["work"].p_saved is None:  # nothing to fold
            found[DZ] = found.pop(EVERY_DZ)
        if found["loss"].ndim:  # those of the images
            del found["losses of images"]
    return found


def _note_sums(monkeypatch: pytest.MonkeyPatch, recording: Recording) -> None:
    chosen: Any = class_gram
    exact, linear = chosen.exact_class, chosen.linear_class
    rows_again, pairs_again = exact_class._divergences, pair_gram._divergences

    def note_exact(*args: Any) -> Any:
        recording.again = 0
        loss = exact(*args)
        recording.sums[ExactSum(recording.again)] += 1
        return loss

    def note_rows(*args: Any) -> Any:
        recording.again += 1
        return rows_again(*args)

    def note_pairs(*args: Any) -> Any:
        o_rows, count = args[2].handle.data, int(args[7].handle.data.item())
        recording.sums[PairsAgain(count, int((o_rows < count).sum()))] += 1
        return pairs_again(*args)

    def note_linear(*args: Any) -> Any:
        tensors, classes = recording.launches[-1].tensors, int(args[9].handle.data.item())
        student = _nodes(tensors["student's logits"], args[0], args[7], classes)
        teacher = _nodes(tensors["teacher's logits"], args[1], args[8], classes)
        recording.sums[LinearSum(student, teacher)] += 1
        return linear(*args)

    monkeypatch.setattr(chosen, "exact_class", note_exact)
    monkeypatch.setattr(chosen, "linear_class", note_linear)
    monkeypatch.setattr(exact_class, "_divergences", note_rows)
    monkeypatch.setattr(pair_gram, "_divergences", note_pairs)


def _nodes(logits: torch.Tensor, pointer: Any, counts: Any, classes: int) -> Nodes:
    """Of one network's cell, whose logits begin at `pointer`."""
    first = (int(pointer.handle.data.item()) - logits.data_ptr()) // logits.element_size()
    below = int((logits[first : first + classes] < 0).sum())
    positive, negative, columns = (int(count.handle.data.item()) for count in counts)
    return Nodes(positive, negative, columns, below)


def problem_of(case: Case) -> Problem:
    tensors = case.tensors()
    return Problem(tuple(map(layout, tensors)), make_options(**case.options), compute_dtype(*tensors))


def step(case: Case) -> Recording:
    """Loss and gradients in the interpreter."""
    CASES_RUN["memory traffic"] += 1
    names = [name for name in STUDENT if getattr(case.tensors(), name) is not None]
    tensors = case.tensors().requiring_grad(*names)
    with recorded() as recording:
        loss = loss_of(tensors, "triton", **case.options)
        grad(loss, tensors.student, torch.ones_like(loss))
    return recording


def accounted(launch: Launch) -> Counter[tuple[str, str]]:
    """The account in the recording's terms."""
    total: Counter[tuple[str, str]] = Counter()
    for entry in launch.accesses:
        total["loaded", entry.buffer] += entry.loaded
        total["stored", entry.buffer] += entry.stored
    return +total


def assert_accounted(case: Case, *, is_dense: bool = True) -> Recording:
    """Every byte that either launch loads and stores, buffer by buffer; and every place, once.

    Not the places where a tensor's elements share them, or where a scale of weight 0 leaves logits unread.
    """
    recording, problem = step(case), problem_of(case)
    for launch, seen in zip((forward(problem, recording.sums), backward(problem)), recording.launches, strict=True):
        assert accounted(launch) == seen.bytes
        if is_dense and min(problem.options.scale_weights) > 0:
            assert launch.once == seen.once
    return recording


CASES: dict[str, Case] = {
    "released, odd sizes": Case(batch=3, classes=7, student=Network(5, 5, 6), options=RELEASED),
    "paper, odd sizes": Case(batch=3, classes=21, student=Network(5, 5, 3), options=PAPER),
    "paper, folded": Case(batch=2, classes=5, student=Network(4, 4, 8), teacher=Network(3, 8, 4), options=PAPER),
    "parts of both products": Case(
        batch=15, classes=33, student=Network(130, 4, 4), teacher=Network(150, 3, 2),
        options={**RELEASED, "scales": (3,)},
    ),
    "single": Case(
        batch=5, classes=67, student=Network(40, 5, 5, **SINGLE), teacher=Network(70, 9, 9, **SINGLE),
        options={**RELEASED, "reduction": "none"},
    ),
    "halves": Case(
        batch=2, classes=19, student=Network(130, 5, 5, **HALF), teacher=Network(9, 9, 9, **HALF),
        options={**PAPER, "normalize": "l2"},
    ),
    "no bias": Case(
        batch=4, student=Network(6, 3, 3, bias_dtype=None), teacher=Network(3, 2, 2, bias_dtype=None),
        options={**RELEASED, "reduction": "sum"},
    ),
    "tiles of pairs": Case(batch=1, student=Network(3, 9, 9), options={**RELEASED, "scales": (2, 9, 2)}),
    "tiles of pairs, many classes": Case(
        batch=1, classes=300, student=Network(2, 3, 3, **SINGLE), teacher=Network(2, 2, 2, **SINGLE),
        options={**RELEASED, "normalize": "zscore", "pyramid": "adaptive", "scales": (1, 2)},
    ),
    "a scale of weight 0": Case(classes=20, options={**PAPER, "scale_weights": (1.0, 0.0, 1.0), "scales": (1, 3, 2)}),
    "another": Case(options={**RELEASED, "scale_weights": (0.0, 1.0, 1.0)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_byte(name: str) -> None:
    assert_accounted(CASES[name])


@pytest.mark.parametrize("network", [Network(3, 4, 4), Network(3, 4, 4, **SINGLE)])
def test_linear_sums(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    monkeypatch.setenv(configs.CLASS_SUM_VARIABLE, "linear")
    case = Case(classes=140, batch=1, student=network, teacher=network, options={**PAPER, "scales": (1, 2)})
    recording = assert_accounted(replace(case, options={**case.options, "temperature": 1.0}))
    assert any(isinstance(kind, LinearSum) for kind in recording.sums)


@given(case=case_strategy(Limits(batch=3, channels=6, side=6, classes=8, scale=3, scales=3)))
@settings(max_examples=12, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_drawn(case: Case) -> None:
    """Any strides, dtypes, scales, weights and options of these two Grams."""
    if case.options["gram"] == "sample":
        case = replace(case, options={**case.options, "gram": "spatial"})
    assert_accounted(case, is_dense=False)


def test_the_cases_reach_what_they_name() -> None:
    """Products in parts and whole, several images in one product and one, and all ways through the Gram stage."""
    problems = [problem_of(case) for case in CASES.values()]
    plans = [plan_forward(problem) for problem in problems]
    assert {plan.student.constants.SPLITS > 1 for plan in plans} == {True, False}
    assert {plan_backward(problem).splits > 1 for problem in problems} == {True, False}
    assert {plan.student.constants.GROUP_IMAGES > 1 for plan in plans} == {True, False}
    assert {plan.gram.form.RESIDENT > 0 for plan in plans} == {True, False}
    assert {plan.gram.form.FINEST > 0 for plan in plans} == {True, False}
    assert {-(-plan.student.constants.CELLS // plan.student.constants.CELL_BLOCK) for plan in plans} == {1, 2}


def test_the_floor_is_the_least() -> None:
    """Of every workload; nothing of its size is allocated."""
    for one in traffic.accounts():
        assert one.floor <= one.once <= one.asked
