"""A run of several processes: as torchrun starts it, and what two of them compute against one with the whole batch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from icd_kernels.objectives import make_objective  # noqa: E402
from training import cifar100, data, experiment, networks, options, settings, squares  # noqa: E402
from training.data import Batch, DataSet  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.losses import CrossEntropy, Distillation, Loss  # noqa: E402
from training.networks import Classifier, Network  # noqa: E402
from training.photographs import read_folder  # noqa: E402
from training.processes import ALONE, Processes  # noqa: E402
from training.schedule import Schedule  # noqa: E402
from training.trainer import Optimization, Trainer  # noqa: E402

CPU = torch.device("cpu")
TIMEOUT = 100  # seconds; whatever hangs, ends
EPOCHS = 2
METHODS = ("none", "icd-kd")
TINY = ["--data", "digits", "--train-images", "30", "--batch-size", "15", "--epochs", str(EPOCHS), "--seeds", "1"]
TINY += ["--teacher-epochs", "1", "--methods", ",".join(METHODS), "--device", "cpu"]
OUTPUTS = ("metrics.jsonl", "curves.png", "grams.png", "compare.png", "summary.json", "table.txt", "table.md")
ROUNDING = 1e-12
"""Of float64 sums over a few steps, relative to the largest element."""

LOSSES = ("loss", "ce", "kd", "icd")

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch was built without torch.distributed and gloo"
)


def launch(*arguments: str | Path) -> subprocess.Popen[str]:
    """Starts two processes of a script."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "--local-addr", "127.0.0.1"]
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a run that ends by itself."""
    try:
        printed, errors = run.communicate(timeout=TIMEOUT)
    finally:
        run.terminate()  # and with it, by torchrun, its processes
    return run.returncode, printed, errors


def train(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Starts the tiny run in two processes, its results and its teacher in `folder`."""
    places = ["--out", str(folder / "out"), "--cache", str(folder / "teachers")]
    return launch(ROOT / "train_example.py", *TINY, *places, *more)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times."""
    path = folder / "out" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a run that nothing interrupted, and what it printed."""
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}: pip install {module}")
    folder = tmp_path_factory.mktemp("unbroken")
    status, printed, errors = ended(train(folder))
    assert status == 0, errors
    return folder, printed, errors


@needs_gloo
class TestRun:
    def test_one_of_two_processes_writes_and_prints(self, unbroken: tuple[Path, str, str]) -> None:
        folder, printed, errors = unbroken
        for name in OUTPUTS:
            assert (folder / "out" / name).stat().st_size > 0
        expected = [(method, epoch) for method in METHODS for epoch in range(1, EPOCHS + 1)]
        assert [(row["method"], row["epoch"]) for row in rows_of(folder)] == expected
        assert printed.count("Done in") == 1
        assert len(re.findall(r"^teacher ", printed, flags=re.MULTILINE)) == 1
        assert "UserWarning" not in errors  # such as DistributedDataParallel has for gradients that it must copy
        assert not list(folder.glob("**/*.tmp"))
        summary = json.loads((folder / "out" / "summary.json").read_text())
        assert summary["settings"]["processes"] == 2

    @pytest.mark.thorough
    @pytest.mark.skipif(sys.platform != "linux", reason="finds the processes of torchrun in /proc")
    def test_killed_and_resumed_ends_with_the_same_numbers(
        self, unbroken: tuple[Path, str, str], tmp_path: Path
    ) -> None:
        """One process is killed in a student's second epoch or just after, which ends the other."""
        run = train(tmp_path)
        give_up = time.monotonic() + TIMEOUT
        try:
            while len(rows_of(tmp_path)) < 1:
                assert run.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.002)
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)
        finally:
            status, _, errors = ended(run)
        assert status != 0, errors
        assert 1 <= len(rows_of(tmp_path)) < EPOCHS * len(METHODS)
        status, _, errors = ended(train(tmp_path, "--resume"))
        assert status == 0, errors
        assert rows_of(tmp_path) == rows_of(unbroken[0])

    def test_what_the_first_refuses_is_said_once(self, unbroken: tuple[Path, str, str]) -> None:
        status, _, errors = ended(train(unbroken[0], "--methods", "crd"))
        assert status != 0
        assert errors.count("error: --methods must not have crd in several processes") == 1


def compared(processes: Processes, loss: Loss, sizes: tuple[int, int]) -> dict[str, float]:
    """How far two epochs of two processes are from those of one, for weights and terms: relative errors.

    Args:
        processes: two.
        loss: of a network without BatchNorm, whose statistics would be a share's.
        sizes: of the first batch, and of the smaller last one.
    """
    images = torch.randn(sum(sizes), 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [Batch(*part) for part in zip(images.split(sizes[0]), *_labels(sum(sizes), sizes[0]), strict=True)]
    shares = [Batch(*(part[processes.share] for part in batch)) for batch in batches]
    weights = processes.weights(sum(sizes), sizes[0], len(batches))
    optimization = Optimization(0.5, clip=1.0)
    together = Trainer(plain_network(processes.rank), loss, optimization, Schedule(2, len(batches)), processes)
    alone = Trainer(plain_network(0), loss, optimization, Schedule(2, len(batches)))
    errors: dict[str, float] = {}
    for epoch in (1, 2):
        terms, expected = together.train_epoch(shares, epoch, weights), alone.train_epoch(batches, epoch)
        errors.update({f"{name} {epoch}": abs(terms[name] / expected[name] - 1) for name in terms if name in LOSSES})
        pairs = zip(together.network.parameters(), alone.network.parameters(), strict=True)
        errors[f"weights {epoch}"] = max(relative(own, whole) for own, whole in pairs)
    pairs = zip(together.network.parameters(), alone.network.parameters(), strict=True)
    errors["gradients"] = max(relative(own.grad, whole.grad) for own, whole in pairs)
    first = processes.from_first(lambda: [parameter.detach() for parameter in together.network.parameters()])
    same = all(torch.equal(own, other) for own, other in zip(together.network.parameters(), first, strict=True))
    return {**errors, "between processes": 0.0 if same else 1.0}


def _labels(count: int, batch_size: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    rows = torch.arange(count)
    return (rows % 3).split(batch_size), rows.split(batch_size)


def relative(own: Tensor | None, expected: Tensor | None) -> float:
    assert own is not None
    assert expected is not None
    return float(((own - expected).abs().max() / expected.abs().max()).detach())


def plain_network(seed: int) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
        return Classifier(body, channels=4, classes=3).double()


def buffers_are_the_firsts(processes: Processes) -> float:
    """Each process saw other images; in the end the running statistics are those of the first process."""
    network = networks.make("small", "student", 1, 8, 10, seed=0)
    trainer = Trainer(network, CrossEntropy(), Optimization(0.1), Schedule(1, 1), processes)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(processes.rank))
    trainer.train_epoch([Batch(images, torch.arange(4), torch.arange(4))], 1, [1.0])
    first = processes.from_first(lambda: list(network.buffers()))
    return 0.0 if all(torch.equal(own, other) for own, other in zip(network.buffers(), first, strict=True)) else 1.0


def work(results: Path) -> None:
    """What one of the two processes finds: the largest error of each check."""
    torch.set_num_threads(1)
    processes = Processes.from_environment()
    teacher = plain_network(7).eval().requires_grad_(False)
    losses: dict[str, Loss] = {
        "cross-entropy": CrossEntropy(),
        "icd-kd": Distillation(
            lambda batch: teacher(batch.images), make_objective("icd-kd", num_classes=3, scales=(1, 2))
        ),
    }
    with processes.connected(CPU):
        found = {
            f"{name} {sizes}": compared(processes, loss, sizes)
            for name, loss in losses.items()
            for sizes in ((8, 4), (7, 2), (7, 3))
        }
        found["buffers"] = {"": buffers_are_the_firsts(processes)}
    results.with_suffix(f".{processes.rank}").write_text(json.dumps(found))


@needs_gloo
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path: Path) -> None:
    status, printed, errors = ended(launch(__file__, tmp_path / "found"))
    assert status == 0, printed + errors
    for rank in (0, 1):
        for check, numbers in json.loads((tmp_path / f"found.{rank}").read_text()).items():
            assert max(numbers.values()) < ROUNDING, (check, numbers)


class TestShares:
    def test_weights_make_the_mean_over_processes_that_of_the_batch(self) -> None:
        every = [Processes(rank, 3).weights(11, 4, 3) for rank in range(3)]  # batches of 4, 4 and 3
        assert every == [[1.5, 1.5, 1.0], [0.75, 0.75, 1.0], [0.75, 0.75, 1.0]]
        assert ALONE.weights(11, 4, 3) == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("augment", [None, cifar100.augmented])
    def test_images_in_memory(self, augment: Any) -> None:
        pixels = torch.rand(11, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        images = data.Images(pixels, torch.arange(11), pixels, torch.arange(11), max_shift=2, augment=augment)
        self.check(images)

    def test_photographs_and_what_is_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        image = pytest.importorskip("PIL.Image", reason="photographs need Pillow: pip install pillow")
        for part, name in ((part, name) for part in ("train", "test") for name in "ab"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(6):
                shades = (40 * number, 20, 200 * (name == "a"))
                image.new("RGB", (30 + number, 28), shades).save(tmp_path / part / name / f"{number}.png")
        self.check(read_folder(tmp_path, CPU, workers=0))
        decoded: list[Path] = []
        resized = squares._resized

        def counted(file: Path) -> Any:
            decoded.append(file)
            return resized(file)

        monkeypatch.setattr(squares, "_resized", counted)
        photos = read_folder(tmp_path, CPU, workers=0)
        list(photos.train_batches(torch.arange(11), 5, seed=1, epoch=2, share=slice(1, None, 2)))
        assert len(decoded) == 4  # 2 of each of two batches of 5; the last image fills no batch

    def check(self, images: DataSet) -> None:
        """The shares of a batch are together the batch that one process has."""
        rows = torch.arange(11)
        whole = list(images.train_batches(rows, 5, seed=1, epoch=2))
        parts = [list(images.train_batches(rows, 5, 1, 2, Processes(rank, 2).share)) for rank in (0, 1)]
        for batch, *shares in zip(whole, *parts, strict=True):
            for rank, share in enumerate(shares):
                assert all(torch.equal(own, all_[rank::2]) for own, all_ in zip(share, batch, strict=True))

    def test_a_batch_that_is_too_small_is_refused(self) -> None:
        from small_images import small_images  # here: the file is a process's script too, outside of pytest

        chosen = options.parse([*TINY, "--batch-size", "14"])
        resolved = settings.resolved(chosen, settings.make_icd(chosen, CPU), small_images(), CPU, processes=2)
        images = data.load("digits", CPU)
        with pytest.raises(UsageError, match=r"--batch-size 14: 2 processes need 4 images.*last batch of 30 has 2"):
            experiment._check_shares(images, resolved)
        with pytest.raises(UsageError, match=r"teacher's batch size, always 64: 32 .* need 64.*of 1078 has 54"):
            experiment._check_shares(images, {**resolved, "batch_size": 64, "train_images": 960, "processes": 32})


class TestEnvironment:
    @pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
    def test_one_process_is_alone(self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Processes.from_environment() is ALONE
        assert not dist.is_initialized()

    def test_world_size_without_torchrun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(UsageError, match=r"variable RANK must be .* got '': start several processes with torchrun"):
            Processes.from_environment()

    @pytest.mark.parametrize(
        ("device", "said"),
        [
            ("cuda:1", r"--device must be auto, cpu or cuda in several processes.*, got cuda:1"),
            ("cuda", r"--device cuda: 99 processes need a GPU each, and PyTorch .* sees \d+ here"),
        ],
    )
    def test_every_process_has_its_own_gpu(self, device: str, said: str) -> None:
        chosen = options.parse(["--device", device])
        with pytest.raises(UsageError, match=said):
            settings.make_device(chosen, Processes(0, 99, 0, 99))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    os._exit(0)  # as the example ends
