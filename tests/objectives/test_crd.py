"""CRD: its formula, its memory, its negatives, and that a resumed run is an unbroken one."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import formulas
import pytest
import torch
from networks import CRD_OPTIONS, ROWS, example, map_and_head, objective_of
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset, TensorDataset

from icd_kernels.objectives import IndexedDataset, Objective
from icd_kernels.objectives.negatives import Negatives


def term(objective: Objective) -> Any:
    """The CRD term of an objective."""
    return objective.base


def embeddings(objective: Objective) -> list[Tensor]:
    """Of :func:`example`, student's and teacher's."""
    layers = (term(objective).student_embedding, term(objective).teacher_embedding)
    pooled = [map_and_head(network)[0].detach().mean((2, 3)) for network in example()[:2]]
    return [torch.nn.functional.normalize(layer(x), dim=1) for layer, x in zip(layers, pooled, strict=True)]


def step(objective: Objective, seed: int, images: int = 0) -> Any:
    batch = example(seed=images)
    torch.manual_seed(seed)
    return objective(*batch[:3], indices=batch.indices)


def test_is_the_formula() -> None:
    """The first batch sets Z, the second is divided by it; the memory moves between them."""
    objective = objective_of("crd", reduction="none").double()
    indices = example().indices
    z = None
    for seed in (1, 2):
        student_memory, teacher_memory = (
            term(objective).student_memory.tolist(),
            term(objective).teacher_memory.tolist(),
        )
        student, teacher = (value.tolist() for value in embeddings(objective))
        torch.manual_seed(seed)
        negatives = term(objective).negatives.draw(indices)
        columns = torch.cat((indices[:, None], negatives), dim=1).tolist()
        expected, z = formulas.crd(student, teacher, student_memory, teacher_memory, columns, 0.07, z)
        assert_close(step(objective, seed).components["crd"], torch.tensor(expected, dtype=torch.float64))


def test_memory_moves_half_way_and_keeps_its_norm() -> None:
    objective = objective_of("crd").double()
    indices = example().indices
    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    values = dict(zip(("student", "teacher"), embeddings(objective), strict=True))
    step(objective, 1)
    for name, value in values.items():
        memory, old = (state[f"base.{name}_memory"] for state in (dict(objective.named_buffers()), before))
        expected = torch.nn.functional.normalize(0.5 * old[indices] + 0.5 * value, dim=1)
        assert_close(memory[indices], expected)
        untouched = torch.ones(ROWS, dtype=torch.bool).index_fill(0, indices, False)
        assert torch.equal(memory[untouched], old[untouched])


def test_evaluation_leaves_the_memory_alone() -> None:
    objective = objective_of("crd").eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.double()
    step(objective, 1)
    objective.float()
    for name, value in objective.state_dict().items():
        assert_close(value, before[name], equal_nan=True)


def test_the_memorys_change_does_not_reach_the_gradient() -> None:
    """Training mode writes to the memory before backward; evaluation mode, with the same Z, does not."""
    objective = objective_of("crd").double()
    step(objective, 1)
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    grads = []
    for mode in (True, False):
        objective.load_state_dict(state)
        objective.train(mode)
        batch = example()
        torch.manual_seed(5)
        total = objective(*batch[:3], indices=batch.indices).total
        grads.append(torch.autograd.grad(total, [map_and_head(batch.student)[0], *objective.parameters()]))
    assert_close(*grads, rtol=0, atol=0)


def test_resumes_as_if_never_stopped() -> None:
    """Through a file that is loaded with weights_only=True, optimizer and random state beside it."""

    def train(objective: Objective, optimizer: torch.optim.Optimizer, steps: range) -> list[Tensor]:
        totals = []
        for number in steps:
            optimizer.zero_grad()
            total = step(objective, number, images=number).total
            total.backward()
            optimizer.step()
            totals.append(total.detach())
        return totals

    def fresh(seed: int) -> tuple[Objective, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        objective = objective_of("crd", num_negatives=5).double()
        return objective, torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)

    unbroken = fresh(0)
    expected = train(*unbroken, range(6))
    first = fresh(0)
    train(*first, range(3))
    file = io.BytesIO()
    torch.save({"objective": first[0].state_dict(), "optimizer": first[1].state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {"base.student_memory", "base.teacher_memory", "base.log_normalizers"} < set(saved["objective"])
    second = fresh(1)
    second[0].load_state_dict(saved["objective"])
    second[1].load_state_dict(saved["optimizer"])
    assert_close(train(*second, range(3, 6)), expected[3:], rtol=0, atol=0)
    assert_close(second[0].state_dict(), unbroken[0].state_dict(), rtol=0, atol=0)


def test_training_lowers_it() -> None:
    objective = objective_of("crd", num_negatives=30).double()
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.05)
    losses = []
    for number in range(30):
        optimizer.zero_grad()
        out = step(objective, number)
        out.total.backward()
        optimizer.step()
        losses.append(out.components["crd"].item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


class TestNegatives:
    def test_of_other_images(self) -> None:
        """Each other row about equally often, the image's own never."""
        negatives = Negatives(10, 9, None)
        torch.manual_seed(0)
        drawn = torch.cat([negatives.draw(torch.tensor([0, 4, 9])) for _ in range(1000)], dim=1)
        for own, row in zip((0, 4, 9), drawn.tolist(), strict=True):
            counts = Counter(row)
            assert set(counts) == set(range(10)) - {own}
            assert min(counts.values()) > 800

    def test_of_other_classes(self) -> None:
        labels = torch.tensor([2, 0, 2, 1, 0, 2, 1, 1])
        negatives = Negatives(8, 100, labels)
        assert negatives.count == 5
        torch.manual_seed(0)
        images = torch.arange(8)
        drawn = torch.cat([negatives.draw(images) for _ in range(200)], dim=1)
        for image, row in zip(images.tolist(), drawn.tolist(), strict=True):
            assert set(row) == {other for other in range(8) if labels[other] != labels[image]}

    def test_are_no_part_of_the_state(self) -> None:
        """They follow from the options."""
        assert not Negatives(8, 3, [0, 1] * 4).state_dict()


class TestErrors:
    @pytest.mark.parametrize("indices", [None, [0] * 6, torch.zeros(6), torch.zeros(5, dtype=torch.int64)])
    def test_indices(self, indices: Any) -> None:
        with pytest.raises(ValueError, match="indices must be"):
            objective_of("crd")(*example(torch.float32)[:3], indices=indices)

    @pytest.mark.parametrize("name", ["student", "teacher"])
    def test_channels(self, name: str) -> None:
        objective = objective_of("crd", **{f"{name}_channels": 4})
        with pytest.raises(ValueError, match=rf"{name}.features must have the 4 channels of {name}_channels"):
            step(objective.double(), 1)

    def test_samples_that_are_no_tuples(self) -> None:
        with pytest.raises(TypeError, match=r"dataset must give tuples .* got Tensor"):
            IndexedDataset(torch.zeros(3, 2))[0]  # type: ignore[arg-type]


class TestIndexedDataset:
    def test_of_a_part_in_a_loader(self, tmp_path: Path) -> None:
        images = torch.arange(10.0)[:, None]
        part = IndexedDataset(Subset(TensorDataset(images, images[:, 0].long()), range(3, 9)))
        assert len(part) == 6
        seen: dict[int, float] = {}
        for batch_images, _, indices in DataLoader(part, batch_size=4, shuffle=True):
            assert indices.dtype == torch.int64
            seen.update(zip(indices.tolist(), batch_images[:, 0].tolist(), strict=True))
        assert seen == {position: position + 3.0 for position in range(6)}

    def test_as_a_list(self) -> None:
        part = IndexedDataset(TensorDataset(torch.arange(4)))
        assert part[-1] == (torch.tensor(3), 3)
        with pytest.raises(IndexError):
            part[4]


def test_the_examples_options_are_used() -> None:
    assert term(objective_of("crd")).student_memory.shape == (ROWS, CRD_OPTIONS["embedding_size"])
