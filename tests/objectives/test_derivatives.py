"""Gradients of each loss by gradcheck; the teacher a constant; torch.compile, autocast and gradient scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import CRD_OPTIONS, EVERY_METHOD, LOGIT_METHODS, Example, example, map_and_head, objective_of
from torch import Tensor
from torch.autograd import grad, gradcheck
from torch.testing import assert_close

from icd_kernels import NetworkOutput, available_backends, sdd_loss
from icd_kernels.objectives import Objective

BACKENDS = [name for name in ("reference", "cpp") if name in available_backends()]


def total_of(objective: Objective, batch: Example, leaves: tuple[Tensor, ...], seed: int = 3) -> Tensor:
    """The total with other tensors in the student's place. CRD draws the same negatives in every call."""
    logits, features, weight, bias = leaves
    torch.manual_seed(seed)
    student = NetworkOutput(logits, features, (weight, bias))
    return objective(student, batch.teacher, batch.target, epoch=10, indices=batch.indices).total


def is_unused(loss: Tensor, *tensors: Tensor) -> bool:
    """Whether no gradient reaches any of the tensors."""
    grads: tuple[Tensor | None, ...] = grad(loss, tensors, allow_unused=True)
    return all(gradient is None for gradient in grads)


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_gradcheck(method: str, backend: str, classes: int) -> None:
    batch = example(classes=classes, batch=2, size=1.0, heights=(2, 3))
    objective = objective_of(method, backend=backend, num_classes=classes, reduction="none").double()
    if method == "crd":
        total_of(objective, batch, batch.leaves)  # sets the normalizers
    objective.eval()
    assert gradcheck(lambda *leaves: total_of(objective, batch, leaves), batch.leaves)


VARIATIONS: dict[str, dict[str, Any]] = {
    "pairs": {"num_classes": 3, "student_classes": [4, 0, 7], "teacher_classes": [8, 2, 3]},
    "without a target": {"ce_weight": 0},
    "unlabelled": {},
    "masked": {"label_smoothing": 0.1},
    "standardized": {"standardize": True},
    "queue": {"memory_size": 9, "dataset_size": None},
}


def varied(batch: Example, variation: str) -> Example:
    """The batch that the options of a variation are for."""
    if variation == "without a target":
        return batch._replace(target=None)  # type: ignore[arg-type]
    if variation == "unlabelled":
        return batch._replace(target=torch.where(torch.arange(len(batch.target)) == 1, -100, batch.target))
    if variation == "masked":
        logits = batch.teacher.logits.detach().clone()
        logits[0, [k for k in (2, 5, 6) if k != batch.target[0]]] = -torch.inf
        return batch._replace(teacher=batch.teacher._replace(logits=logits))
    return batch


def has_variation(method: str, variation: str) -> bool:
    if variation == "standardized":
        return method.endswith("kd") and not method.endswith("nkd")
    return method == "crd" or variation != "queue"


VARIED = [(method, name) for name in VARIATIONS for method in EVERY_METHOD if has_variation(method, name)]


@pytest.mark.thorough
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("method", "variation"), [each for each in VARIED if each[1] != "queue"])
def test_gradcheck_of_variations(method: str, variation: str, backend: str) -> None:
    """But of CRD's queue, whose positives are constants that come from the student too (test_crd.py)."""
    batch = varied(example(batch=2, size=1.0, heights=(2, 3)), variation)
    objective = objective_of(method, backend=backend, reduction="none", **VARIATIONS[variation]).double()
    if method == "crd":
        total_of(objective, batch, batch.leaves)
    objective.eval()
    assert gradcheck(lambda *leaves: total_of(objective, batch, leaves), batch.leaves)


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "variation"), VARIED)
def test_variations_compile_in_one_graph(method: str, variation: str) -> None:
    batch = varied(example(torch.float32), variation)
    objective = objective_of(method, backend="auto", **VARIATIONS[variation]).eval()
    expected = total_of(objective, batch, batch.leaves)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        student = NetworkOutput(logits, features, (weight, bias))
        return objective(student, batch.teacher, batch.target, epoch=10, indices=batch.indices).total

    torch.manual_seed(3)
    assert_close(total(*batch.leaves), expected)


@pytest.mark.parametrize("base", ["kd", "dkd", "nkd"])
@pytest.mark.parametrize("released", [False, True], ids=["right", "released"])
def test_gradcheck_of_sdd_loss(base: str, released: bool) -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.tensor([0, 3, 1])

    def loss(logits: Tensor) -> Tensor:
        return sdd_loss(logits, teacher, target, base=base, reduction="none", released=released)

    assert gradcheck(loss, student)
    assert is_unused(loss(student).sum(), teacher)


def test_gradcheck_of_crds_embeddings() -> None:
    batch = example(batch=3)
    objective = objective_of("crd").double()
    total_of(objective, batch, batch.leaves)
    objective.eval()
    parameters = dict(objective.named_parameters())

    def total(*values: Tensor) -> Tensor:
        torch.manual_seed(3)
        arguments = (batch.student, batch.teacher, batch.target)
        replaced = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(objective, replaced, arguments, {"indices": batch.indices}).total

    assert len(parameters) == 4
    assert gradcheck(total, tuple(parameters.values()))


@pytest.mark.parametrize("released", [False, True], ids=["right", "released"])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_teacher_gets_no_gradient(method: str, released: bool) -> None:
    batch = example()
    objective = objective_of(method, released=released).double()
    teacher = batch.teacher.logits, *map_and_head(batch.teacher)
    assert all(tensor.requires_grad for tensor in teacher)
    assert is_unused(total_of(objective, batch, batch.leaves), *teacher)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_compiles_in_one_graph(method: str) -> None:
    batch = example(torch.float32)
    objective = objective_of(method, backend="auto")
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    expected = grad(total_of(objective, batch, batch.leaves), batch.leaves, allow_unused=True)
    after = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.load_state_dict(state)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(logits: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        student = NetworkOutput(logits, features, (weight, bias))
        return objective(student, batch.teacher, batch.target, epoch=10, indices=batch.indices).total

    torch.manual_seed(3)
    got = grad(total(*batch.leaves), batch.leaves, allow_unused=True)
    assert_close([g for g in got if g is not None], [g for g in expected if g is not None])
    for name, value in objective.state_dict().items():
        assert_close(value, after[name])


def test_an_epoch_more_is_not_a_graph_more() -> None:
    batch = example(torch.float32)
    objective = objective_of("nkd")
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda epoch: objective(*batch[:3], epoch=epoch).total, fullgraph=True, backend="aot_eager"
    )
    for epoch in range(1, 6):
        with torch.compiler.set_stance("default" if epoch < 3 else "fail_on_recompile"):
            assert_close(compiled(epoch), objective(*batch[:3], epoch=epoch).total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_under_autocast(method: str, dtype: torch.dtype) -> None:
    """The objective's own math stays in float32: the same bits as without autocast."""
    batch = example(torch.float32)
    low = batch.student._replace(
        logits=batch.student.logits.detach().to(dtype).requires_grad_(),
        features=map_and_head(batch.student)[0].detach().to(dtype).requires_grad_(),
    )
    outs = []
    for enabled in (False, True):
        objective = objective_of(method, backend="auto")
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            outs.append(objective(low, batch.teacher, batch.target, epoch=10, indices=batch.indices).total)
    assert outs[1].dtype == torch.float32
    assert_close(outs[1], outs[0], rtol=0, atol=0)
    (2.0**10 * outs[1]).backward()  # as a GradScaler does
    assert low.logits.grad is not None
    assert low.logits.grad.dtype == dtype
    assert low.logits.grad.isfinite().all()


@pytest.mark.parametrize("method", LOGIT_METHODS)
def test_accumulated_gradients_are_those_of_the_batch(method: str) -> None:
    """Two halves, each counting half."""
    batch = example()
    objective = objective_of(method)
    whole = grad(total_of(objective, batch, batch.leaves), batch.leaves, allow_unused=True)
    halves = []
    for half in (slice(0, 3), slice(3, 6)):
        student, teacher = (
            NetworkOutput(network.logits[half], map_and_head(network)[0][half], network.head)
            for network in (batch.student, batch.teacher)
        )
        total = objective(student, teacher, batch.target[half], epoch=10).total
        halves.append(grad(total / 2, batch.leaves, allow_unused=True))
    for expected, *parts in zip(whole, *halves, strict=True):
        if expected is not None:
            assert_close(sum(parts), expected)


def test_crd_options_are_those_of_the_example() -> None:
    """The heads CRD trains are in its parameters, for the optimizer."""
    names = {name for name, _ in objective_of("crd").named_parameters()}
    assert names == {f"base.{side}_embedding.{kind}" for side in ("student", "teacher") for kind in ("weight", "bias")}
    assert CRD_OPTIONS["embedding_size"] == 8
