"""What a run keeps of its students, and teachers whose weights are given."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

import train_example  # noqa: E402
from training import data, given_teacher, networks, students  # noqa: E402
from training.data import Batch  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.losses import CrossEntropy  # noqa: E402
from training.schedule import Schedule  # noqa: E402
from training.trainer import Optimization, Trainer  # noqa: E402

EPOCHS = 3
TINY = ["--data", "digits", "--train-images", "30", "--seeds", "1", "--epochs", str(EPOCHS), "--methods", "none,kd"]
TINY += ["--teacher-epochs", "1", "--teacher", "narrow", "--device", "cpu"]
TOP1 = """
import sys
import torch
from training import data, students
images = data.load("digits", torch.device("cpu"))
network = students.load(sys.argv[1])
with torch.no_grad():
    found = [(network(batch.images).logits.argmax(1) == batch.labels).float() for batch in images.test_batches(250)]
print(100 * torch.cat(found).mean().item())
"""


def run(folder: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of a finished run."""
    places = ["--out", str(folder / "out"), "--cache", str(folder / "teachers")]
    assert train_example.main([*TINY, *places, *more]) == 0
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}: pip install {module}")
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("students")
    rows = run(folder)
    torch.set_num_threads(threads)
    return folder, rows


class TestKept:
    @pytest.mark.parametrize("method", ["none", "kd"])
    def test_best_and_last(self, finished: tuple[Path, list[dict[str, Any]]], method: str) -> None:
        folder, rows = finished
        own = [row for row in rows if row["method"] == method]
        best, last = (
            torch.load(students.path_of(folder / "out", method, 0, which), weights_only=True)
            for which in (students.BEST, students.LAST)
        )
        assert last["row"] == own[-1]
        assert best["row"] == max(own, key=lambda row: row["test_top1"])  # the first of equals
        assert last["settings"]["epochs"] == EPOCHS

    def test_another_process_has_the_same_top1(self, finished: tuple[Path, list[dict[str, Any]]]) -> None:
        folder, rows = finished
        path = students.path_of(folder / "out", "kd", 0, students.LAST)
        ended = subprocess.run(
            [sys.executable, "-c", TOP1, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert float(ended.stdout) == pytest.approx(rows[-1]["test_top1"], abs=1e-4)

    def test_the_line_that_is_printed_loads_it(
        self, finished: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(finished[0], "--resume")
        (line,) = re.findall(r"^  (from training import .*)$", capsys.readouterr().out, flags=re.MULTILINE)
        found: dict[str, Any] = {}
        exec(line, found)
        assert isinstance(found["model"], networks.Classifier)

    def test_overwriting_deletes_them(self, tmp_path: Path) -> None:
        run(tmp_path)
        run(tmp_path, "--overwrite", "--methods", "none")
        assert {path.name for path in (tmp_path / "out" / students.FOLDER).iterdir()} == {
            "none-seed0-best.pt",
            "none-seed0-last.pt",
        }

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "timm:resnet18",
                'import timm, torch; model = timm.create_model("resnet18", num_classes=10, in_chans=1); ',
            ),
            (
                "torchvision:resnet18",
                'import torch, torchvision; model = torchvision.models.get_model("resnet18", num_classes=10); ',
            ),
        ],
    )
    def test_library_models_load_into_their_own(self, name: str, expected: str) -> None:
        made = {"name": name, "channels": 1, "side": 28, "classes": 10}
        loads = 'model.load_state_dict(torch.load("student.pt", weights_only=True)["state_dict"])'
        assert students.how_to_load(Path("student.pt"), made) == expected + loads


class TestGivenTeacher:
    def network(self) -> networks.Network:
        images = data.load("digits", torch.device("cpu"))
        return networks.make("narrow", "teacher", images.channels, images.side, images.classes, seed=3)

    @pytest.mark.parametrize("wrapped", ["plain", "model", "module", "state_dict", "compiled"])
    def test_every_wrapping_is_taken_off(self, tmp_path: Path, wrapped: str) -> None:
        network, file = self.network(), tmp_path / "teacher.pt"
        weights = network.state_dict()
        prefixed = {f"module.{name}": value for name, value in weights.items()}
        content: dict[str, Any] = {
            "plain": weights,
            "model": {"epoch": 240, "model": weights},
            "module": {"state_dict": prefixed, "accuracy": 79.4},
            "state_dict": {"state_dict": weights},
            "compiled": {f"_orig_mod.{name}": value for name, value in weights.items()},
        }[wrapped]
        torch.save(content, file)
        other = networks.make("narrow", "teacher", 1, 8, 10, seed=4)
        given_teacher.load_weights(other, given_teacher.read_weights(file), "")
        assert all(torch.equal(own, other.state_dict()[name]) for name, own in weights.items())

    def test_nothing_of_it_is_trained(self, tmp_path: Path) -> None:
        file = tmp_path / "teacher.pt"
        torch.save(self.network().state_dict(), file)
        device = torch.device("cpu")
        chosen = {"teacher": "narrow", "teacher_seed": 0, "teacher_mean": (0.5,), "teacher_std": (0.25,)}
        chosen |= {"data": "digits", "teacher_checkpoint": file.name, "methods": ["kd"]}
        teacher = given_teacher.GivenTeacher(data.load("digits", device), chosen, file, tmp_path, device)
        assert teacher.epochs == teacher.epochs_done == 0
        network = teacher.finish(lambda epoch: None)
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())

    def test_a_run_takes_it_and_trains_no_teacher(
        self, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path
    ) -> None:
        """The kept teacher of another run, given: the students' numbers are that run's."""
        (kept,) = (finished[0] / "teachers").glob("*.pt")
        rows = run(tmp_path, "--teacher-checkpoint", str(kept))
        assert not list((tmp_path / "teachers").glob("*.pt"))
        without_times = [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]
        assert without_times == [
            {name: value for name, value in row.items() if "seconds" not in name} for row in finished[1]
        ]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda weights: weights.pop("head.bias"), r"not this network's: missing head\.bias"),
            (lambda weights: weights.update(extra=torch.ones(1)), "not this network's: unexpected extra"),
            (
                lambda weights: weights.update({"head.bias": torch.ones(3)}),
                r"another shape head\.bias \(3,\) for \(10,\)",
            ),
        ],
    )
    def test_weights_of_another_network_are_named(self, tmp_path: Path, change: Any, said: str) -> None:
        weights = dict(self.network().state_dict())
        change(weights)
        torch.save(weights, tmp_path / "teacher.pt")
        with pytest.raises(UsageError, match=said):
            given_teacher.load_weights(self.network(), given_teacher.read_weights(tmp_path / "teacher.pt"), "it")

    @pytest.mark.parametrize(
        ("content", "said"),
        [(b"not a checkpoint", "is not a checkpoint of weights alone"), (None, "must hold tensors by their names")],
    )
    def test_what_is_no_checkpoint(self, tmp_path: Path, content: bytes | None, said: str) -> None:
        file = tmp_path / "teacher.pt"
        if content is None:
            torch.save({"epochs": 3}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=f"teacher.pt {said}"):
            given_teacher.read_weights(file)

    def test_safetensors(self, tmp_path: Path) -> None:
        safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
        weights = {name: value.contiguous() for name, value in self.network().state_dict().items()}
        safetensors.save_file(weights, tmp_path / "teacher.safetensors")
        read = given_teacher.read_weights(tmp_path / "teacher.safetensors")
        assert all(torch.equal(value, read[name]) for name, value in weights.items())


class TestPrecision:
    def test_bfloat16_trains(self, tmp_path: Path) -> None:
        rows = run(tmp_path, "--amp", "bf16")
        assert all(torch.tensor(row["train_loss"]).isfinite() for row in rows)
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["settings"]["amp"] == "bf16"

    def test_float16_scales_the_loss(self) -> None:
        """On the CPU, where autocast to float16 runs too: the weights are close to those of a step in float32."""
        images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        batch = Batch(images, torch.arange(8), torch.arange(8))
        trained = {}
        for amp in ("off", "fp16"):
            network = networks.make("narrow", "student", 1, 8, 10, seed=0)
            trainer = Trainer(network, CrossEntropy(), Optimization(0.1, clip=1.0, amp=amp), Schedule(1, 1))
            trainer.train_epoch([batch], 1)
            trained[amp] = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
            restored = Trainer(network, CrossEntropy(), Optimization(0.1, amp=amp), Schedule(1, 1))
            restored.restore(trainer.state())
            assert restored.scaler.get_scale() == trainer.scaler.get_scale()
        torch.testing.assert_close(trained["fp16"], trained["off"], rtol=0, atol=5e-3)


class TestRehearsal:
    def test_what_would_fail_after_the_teacher_fails_before(self, tmp_path: Path) -> None:
        """Whatever a method's step raises is told at once, and nothing is written."""

        def broken(*arguments: Any, **more: Any) -> Any:
            raise RuntimeError("no such map")

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("training.experiment.make_student_objective", broken)
            places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "teachers")]
            assert train_example.main([*TINY, *places]) == train_example.FAILED
        assert not (tmp_path / "teachers").exists()
        assert not (tmp_path / "out").exists()

    def test_it_changes_no_number(self, finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("training.experiment.rehearse", lambda *arguments: None)
            rows = run(tmp_path)
        assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in finished[1]]
