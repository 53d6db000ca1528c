"""Every method through the example: built from the options, trained, compared, and resumed bit for bit."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from small_images import small_images  # noqa: E402

import train_example  # noqa: E402
from icd_kernels import objectives  # noqa: E402
from icd_kernels.options import GRAMS, NORMALIZATIONS, PYRAMIDS  # noqa: E402
from training import networks, options, report, settings  # noqa: E402
from training.averages import difference  # noqa: E402
from training.data import Batch  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.losses import CrossEntropy  # noqa: E402
from training.progress import Progress  # noqa: E402
from training.schedule import Schedule  # noqa: E402
from training.trainer import Optimization, Trainer  # noqa: E402

for _module in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(_module, reason=f"the example needs {_module}: pip install {_module}")

TINY = ["--data", "digits", "--train-images", "20", "--epochs", "2", "--teacher-epochs", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def threads() -> Any:
    """The example sets them for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(folder: Path, *more: str) -> list[dict[str, Any]]:
    """The rows of a finished run, without times."""
    places = ["--out", str(folder / "out"), "--cache", str(folder / "teachers")]
    assert train_example.main([*TINY, *places, *more]) == 0
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds_per_step"} for row in rows]


@pytest.mark.parametrize(("option", "choices"), [("gram", GRAMS), ("pyramid", PYRAMIDS), ("normalize", NORMALIZATIONS)])
def test_choices_are_those_of_the_package(option: str, choices: tuple[str, ...]) -> None:
    """The parser takes any name; the package says which there are, before anything is trained."""
    device = torch.device("cpu")
    for name in choices:
        icd = settings.make_icd(options.parse([f"--{option}", name]), device)
        assert getattr(icd.options, option) == name
    with pytest.raises(UsageError, match=rf"iCD option: {option} must be one of .*'{choices[-1]}'.*, got 'neither'"):
        settings.make_icd(options.parse([f"--{option}", "neither"]), device)


def test_names_are_those_of_the_objectives() -> None:
    assert ("none", *objectives.METHODS) == options.METHODS
    assert options.parse(["--methods", "all"]).methods == options.METHODS


def resolved(*arguments: str) -> dict[str, Any]:
    chosen = options.parse(list(arguments))
    device = torch.device("cpu")
    return settings.resolved(chosen, settings.make_icd(chosen, device), small_images(), device)


def objective_settings(method: str, *arguments: str) -> dict[str, Any]:
    labels = torch.arange(40) % 10
    return settings.make_student_objective(method, resolved(*arguments), labels, (32, 128), seed=0).settings()


def test_default_is_kd_and_icd_over_global_kd() -> None:
    kd = objective_settings("kd")
    assert (kd["ce_weight"], kd["base_weight"], kd["temperature"]) == (pytest.approx(0.1), 0.9, 4.0)
    icd = objective_settings("icd-kd")
    assert (icd["gram"], icd["normalize"], icd["icd_temperature"], icd["icd_weight"]) == ("class", "zscore", 4.0, 3.0)
    assert icd["local_base"] is False
    assert objective_settings("icd-kd", "--local-base")["local_base"] is True


@pytest.mark.parametrize("method", [name for name in objectives.METHODS if name != "crd"])
def test_compare_is_the_default_of_the_objectives_but_for_the_ramp(method: str) -> None:
    expected = objectives.make_objective(method, num_classes=10).settings()
    if expected["ramp_epochs"]:
        expected["ramp_epochs"] = 2
    got = objective_settings(method, "--compare", "--epochs", "30")
    assert got.pop("ce_weight") == pytest.approx(expected.pop("ce_weight"))
    assert got == expected


def test_crd_has_the_sizes_and_no_more_negatives_than_there_are() -> None:
    crd = objective_settings("crd")
    assert (crd["student_channels"], crd["teacher_channels"], crd["dataset_size"]) == (32, 128, 40)
    assert crd["num_negatives"] == 36
    assert objective_settings("crd", "--crd-negatives", "7")["num_negatives"] == 7


def test_ramp_and_warm_up_are_a_twelfth_unless_given() -> None:
    assert resolved("--epochs", "240")["ramp_epochs"] == resolved("--epochs", "240")["warmup_epochs"] == 20
    assert resolved("--epochs", "4")["ramp_epochs"] == 1
    assert objective_settings("dkd", "--ramp-epochs", "0", "--dkd-beta", "6")["ramp_epochs"] == 0
    assert objective_settings("icd-dkd", "--dkd-beta", "6")["beta"] == 6


def test_compare_trains_every_method_and_writes_its_tables(tmp_path: Path) -> None:
    rows = run(tmp_path, "--compare", "--seeds", "2")
    assert [row["method"] for row in rows if row["epoch"] == 2 and row["seed"] == 1] == list(options.METHODS)
    for row in rows:
        assert all(math.isfinite(value) for value in row.values() if not isinstance(value, str)), row
    terms = {row["method"]: {name for name in row if name.startswith("train_")} for row in rows}
    assert terms["icd-nkd"] == {"train_loss", "train_ce", "train_sd-nkd", "train_icd"}
    assert terms["sp"] == {"train_loss", "train_ce", "train_sp"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {pair["method"] for pair in summary["top1_differences"]} == set(options.METHODS) - {"kd"}
    assert {pair["against"] for pair in summary["top1_differences"]} == {"kd"}
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[3:16]] == [f"| {method}" for method in options.METHODS]
    assert all(line.count("|") == 5 for line in lines[:16])
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_crd_and_a_ramp_go_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--methods", "crd,dkd,ldrld", "--seeds", "1", "--epochs", "3")
    unbroken = run(tmp_path, *arguments)

    def interrupt(self: Any, row: dict[str, Any]) -> None:
        if row["epoch"] < 3:
            raise KeyboardInterrupt

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "teachers").symlink_to(tmp_path / "teachers")
    places = ["--out", str(broken / "out"), "--cache", str(broken / "teachers")]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "student_epoch", interrupt)
        for _ in range(6):  # each student's first two epochs
            assert train_example.main([*TINY, *arguments, *places, "--resume"]) == train_example.INTERRUPTED
    assert run(broken, *arguments, "--resume") == unbroken


def test_conclusion_groups_the_methods_by_what_can_be_said() -> None:
    numbers = {"kd": [50.0, 52.0, 51.0], "dkd": [53.0, 55.1, 54.0], "sp": [40.0, 42.1, 41.0], "crd": [50.0, 51.0, 53.0]}
    methods = {name: {"top1": top1} for name, top1 in numbers.items()}
    pairs = [
        {"method": name, "against": "kd", **difference(numbers[name], numbers["kd"])._asdict()}
        for name in ("dkd", "sp", "crd")
    ]
    said = report._conclusion({"train_images": 20, "seeds": 3, "baseline": "kd"}, methods, pairs)
    assert "against kd, better: dkd (+3.03 ± 0.03); worse: sp (-9.97 ± 0.03); not told apart: crd (" in said
    assert "of 3 methods equal to kd, 0.15 would be called better or worse" in said


def test_schedules() -> None:
    cosine = Schedule(epochs=4, steps_per_epoch=5)
    assert [cosine.factor(step) for step in (0, 10, 20)] == [1.0, pytest.approx(0.5), pytest.approx(0.0)]
    steps = Schedule(240, 10, "steps", (150, 180, 210), warmup_epochs=20)
    epochs = (20, 149, 150, 180, 210, 239)
    assert [steps.factor(10 * epoch) for epoch in epochs] == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])
    assert [steps.factor(step) for step in (0, 99, 199)] == pytest.approx([1 / 200, 0.5, 1])


def test_gradients_are_clipped_together() -> None:
    network = networks.make("small", "student", 1, 8, 10, seed=0)
    trainer = Trainer(network, CrossEntropy(), Optimization(1.0, 0.0, False, clip=0.001), Schedule(1, 1))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    batch = Batch(torch.randn(4, 1, 8, 8), torch.arange(4), torch.arange(4))
    trainer.train_epoch([batch], epoch=1)
    moved = [(parameter.detach() - old).flatten() for parameter, old in zip(network.parameters(), before, strict=True)]
    assert float(torch.cat(moved).norm()) == pytest.approx(0.001, rel=1e-3)


class TestCachedTeacher:
    def test_trains_as_the_teacher_itself_would(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On unchanged images, for every method of logits, but for float16. The second run reads the file."""
        from training.cached_teacher import CachedTeacher
        from training.data import Images

        methods = ["--seeds", "1", "--methods", "kd,sd-dkd,icd-nkd,icd-kd", "--no-local-base"]
        cached = run(tmp_path / "cached", "--cache-teacher", *methods)
        (kept,) = (tmp_path / "cached" / "teachers").glob("*-outputs-*.pt")
        content = torch.load(kept, weights_only=True)
        assert content["logits"].dtype == content["regions"].dtype == torch.float16
        assert content["regions"].shape == (*content["logits"].shape, 21)

        with monkeypatch.context() as patch:
            patch.setattr("training.cached_teacher._outputs", None)
            assert run(tmp_path / "cached", "--cache-teacher", "--overwrite", *methods) == cached

            class Live:
                def __init__(self, teacher: Any, images: Images, *_: Any) -> None:
                    self.teacher, self.images = teacher, images

                def at(self, rows: torch.Tensor) -> Any:
                    return lambda batch: self.teacher(self.images.train_images[rows[batch.indices]])

            patch.setattr(CachedTeacher, "load_or_run", Live)
            expected = run(tmp_path / "live", "--cache-teacher", *methods)
        for got, row in zip(cached, expected, strict=True):
            assert {name: pytest.approx(value, rel=2e-2) for name, value in row.items() if "train" in name} == {
                name: value for name, value in got.items() if "train" in name
            }

    @pytest.mark.parametrize("method", ["sp", "crd"])
    def test_is_not_for_methods_of_maps(self, method: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert train_example.main([*TINY, "--cache-teacher", "--methods", f"kd,{method}"]) == 2
        assert f"--cache-teacher keeps the teacher's logits, and {method} of --methods read its maps" in (
            capsys.readouterr().err
        )
