"""CRD: its formula, its memory, its negatives, and that a resumed run is an unbroken one."""

from __future__ import annotations

import io
import warnings
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

from icd_kernels import NetworkOutput, make_objective
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
            term(objective).memory.student_memory.tolist(),
            term(objective).memory.teacher_memory.tolist(),
        )
        student, teacher = (value.tolist() for value in embeddings(objective))
        torch.manual_seed(seed)
        negatives = term(objective).memory.draw.draw(indices)
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
        memory, old = (state[f"base.memory.{name}_memory"] for state in (dict(objective.named_buffers()), before))
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
    memory = {f"base.memory.{name}_memory" for name in ("student", "teacher")}
    assert memory | {"base.log_normalizers"} < set(saved["objective"])
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
    assert term(objective_of("crd")).memory.student_memory.shape == (ROWS, CRD_OPTIONS["embedding_size"])


def overflowed(images: int) -> Any:
    """A batch whose second image has an inf in its map."""
    batch = example(seed=images)
    features = map_and_head(batch.student)[0].detach().clone()
    features[1, 0, 0, 0] = torch.inf
    return batch._replace(student=batch.student._replace(features=features))


@pytest.mark.parametrize("memory", [{}, {"memory_size": 24, "dataset_size": None}], ids=["data set", "queue"])
class TestMemory:
    """Both kinds: what they take in, and when they stand still."""

    def made(self, memory: dict[str, Any]) -> Objective:
        return objective_of("crd", **memory).double()

    def test_a_bad_image_stays_out(self, memory: dict[str, Any]) -> None:
        """Also in the first batch, which sets Z."""
        objective = self.made(memory)
        batch = overflowed(0)
        with pytest.warns(UserWarning, match="CRD leaves out images whose embedding is not finite"):
            out = objective(*batch[:3], indices=batch.indices)
        assert out.total.isnan()
        assert term(objective).memory.left_out == 1
        assert all(value.isfinite().all() for value in objective.state_dict().values())
        for seed in range(3):
            assert step(objective, seed, images=seed).total.isfinite()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is told once
            objective(*batch[:3], indices=batch.indices)
        assert term(objective).memory.left_out == 2

    def test_only_bad_images_leave_z_open(self, memory: dict[str, Any]) -> None:
        objective = self.made(memory)
        batch = example()
        nan = batch.student._replace(features=torch.full_like(map_and_head(batch.student)[0], torch.nan))
        with pytest.warns(UserWarning, match="CRD leaves out"):
            objective(nan, *batch[1:3], indices=batch.indices)
        assert term(objective).log_normalizers.isnan().all()
        assert step(objective, 1).total.isfinite()

    @pytest.mark.parametrize("way", ["eval", "no_grad"])
    def test_stands_still(self, memory: dict[str, Any], way: str) -> None:
        objective = self.made(memory)
        step(objective, 0)
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        objective.train(way != "eval")
        with torch.set_grad_enabled(way != "no_grad"):
            assert step(objective, 1).total.isfinite()
        assert_close(objective.state_dict(), before, rtol=0, atol=0)
        objective.train()
        step(objective, 1)
        assert not torch.equal(
            objective.state_dict()["base.memory.student_memory"], before["base.memory.student_memory"]
        )

    @pytest.mark.parametrize("way", ["saved tensors", "to the end", "reentrant"])
    def test_under_checkpoint(self, memory: dict[str, Any], way: str) -> None:
        """Losses, gradients and memory of three steps, as without it; also where the second forward runs to its end."""
        from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

        results = []
        for is_checkpointed in (False, True):
            objective = self.made(memory)
            found: list[Tensor] = []
            for seed in range(3):
                batch = example(seed=seed)
                torch.manual_seed(seed)

                def loss(features: Tensor, batch: Any = batch, objective: Objective = objective) -> Tensor:
                    student = batch.student._replace(features=features)
                    total: Tensor = objective(student, *batch[1:3], indices=batch.indices).total
                    return total

                features = map_and_head(batch.student)[0]
                with set_checkpoint_early_stop(way != "to the end"):
                    reentrant = way == "reentrant"
                    total = checkpoint(loss, features, use_reentrant=reentrant) if is_checkpointed else loss(features)
                assert isinstance(total, Tensor)
                total.backward()
                assert features.grad is not None
                found += [total.detach(), features.grad]
                found += [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]
            results.append((found, objective.state_dict()))
        assert_close(*results, rtol=1e-12, atol=1e-12)

    def test_resumes(self, memory: dict[str, Any]) -> None:
        one, other = self.made(memory), self.made(memory)
        for seed in range(3):
            step(one, seed, images=seed)
        other.load_state_dict(one.state_dict())
        assert_close(*(step(objective, 7, images=3).total for objective in (one, other)), rtol=0, atol=0)


class TestQueue:
    def test_holds_the_latest_images(self) -> None:
        objective = objective_of("crd", memory_size=15, dataset_size=None).double()
        latest: list[Tensor] = []
        for seed in range(4):
            latest += embeddings_of(objective, seed)
            step(objective, seed, images=seed)
        memory = term(objective).memory
        assert int(memory.position) == 4 * 6 % 15
        newest = torch.stack(latest[-15:])
        order = (memory.position + torch.arange(15)) % 15
        assert_close(memory.student_memory[order], newest)

    def test_is_the_formula(self) -> None:
        """The positive is the other network's embedding, a constant; a row that is the image itself counts nothing."""
        objective = objective_of("crd", memory_size=15, dataset_size=None, reduction="none").double()
        step(objective, 0, images=0)
        memory, log_z = term(objective).memory, term(objective).log_normalizers.clone()
        batch = example(seed=0)
        torch.manual_seed(5)
        columns = torch.randint(15, (6, 12))
        layers = (term(objective).student_embedding, term(objective).teacher_embedding)
        maps = [map_and_head(network)[0] for network in batch[:2]]
        student, teacher = (
            torch.nn.functional.normalize(layer(x.mean((2, 3))), dim=1) for layer, x in zip(layers, maps, strict=True)
        )
        expected = torch.zeros(6, dtype=torch.float64)
        for one, other, rows, z in (
            (student, teacher, memory.teacher_memory, log_z[0]), (teacher, student, memory.student_memory, log_z[1])
        ):  # fmt: skip
            positive = ((one * other.detach()).sum(1) / 0.07 - z).exp()
            expected = expected - (positive / (positive + 12 / 15)).log()
            negative = ((one @ rows.clone().t()).gather(1, columns) / 0.07 - z).exp()
            apart = -((12 / 15) / (negative + 12 / 15)).log()
            is_own = memory.images[columns] == batch.indices[:, None]
            assert is_own.any()
            expected = expected + apart.masked_fill(is_own, 0.0).sum(1)
        leaves = [maps[0], *objective.parameters()]
        torch.manual_seed(5)
        out = objective(*batch[:3], indices=batch.indices)
        assert_close(out.components["crd"], expected.detach())
        ce = torch.nn.functional.cross_entropy(batch.student.logits, batch.target)
        got, wanted = (torch.autograd.grad(x, leaves) for x in (out.total.sum() - ce, 0.8 * expected.sum()))
        assert_close(got, wanted)

    def test_needs_no_indices(self) -> None:
        batch = example()
        objective = objective_of("crd", memory_size=15, dataset_size=None).double()
        assert objective(*batch[:3]).total.isfinite()
        assert objective.settings()["negatives"] == "the latest images"
        assert objective.settings()["memory_size"] == 15

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"memory_size": 20}, "leave out dataset_size and labels"),
            ({"memory_size": 20, "dataset_size": None, "labels": [0, 1]}, "leave out dataset_size and labels"),
            ({"dataset_size": None}, "'crd' needs the option dataset_size, an int, or memory_size for a queue"),
            ({"memory_size": 1, "dataset_size": None}, "memory_size must be 2 or more, got 1"),
        ],
    )
    def test_wrong_sizes(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            objective_of("crd", **options)

    def test_a_batch_that_is_too_large(self) -> None:
        with pytest.raises(ValueError, match="memory_size must be at least the batch, 6 images, got 5"):
            step(objective_of("crd", memory_size=5, dataset_size=None).double(), 0)


def embeddings_of(objective: Objective, images: int) -> list[Tensor]:
    """The student's, image by image."""
    pooled = map_and_head(example(seed=images).student)[0].detach().mean((2, 3))
    return list(torch.nn.functional.normalize(term(objective).student_embedding(pooled), dim=1).detach())


@pytest.mark.parametrize("memory", ["dataset_size", "memory_size"])
def test_the_smallest_sizes(memory: str) -> None:
    """One channel, two images: what the errors name as the least is taken."""
    least: dict[str, Any] = {"student_channels": 1, "teacher_channels": 1, memory: 2}
    objective = make_objective("crd", num_classes=2, backend="reference", num_negatives=1, **least)
    network = NetworkOutput(torch.randn(2, 2), torch.randn(2, 1, 3, 3), (torch.randn(2, 1), torch.randn(2)))
    assert objective(network, network, torch.tensor([0, 1]), indices=torch.tensor([0, 1])).total.isfinite()
