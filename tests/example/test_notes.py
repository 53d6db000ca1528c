"""What a run says before it begins: options that nothing reads, and figures that cannot be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from small_images import small_images  # noqa: E402

import train_example  # noqa: E402
from training import figures, options, settings  # noqa: E402
from training.without_effect import options_without_effect  # noqa: E402

CPU = torch.device("cpu")


def notes(*arguments: str) -> list[str]:
    chosen = options.parse(list(arguments))
    return options_without_effect(
        chosen, settings.resolved(chosen, settings.make_icd(chosen, CPU), small_images(), CPU)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--milestones", "3,4"], "--milestones has no effect: --schedule is cosine"),
        (["--kd-weight=0.5", "--methods", "dkd"], "--kd-weight has no effect: no method of --methods has KD in it"),
        (["--dkd-beta", "2"], "--dkd-beta has no effect: no method of --methods has DKD in it"),
        (["--ramp-epochs", "2"], "--ramp-epochs has no effect: no method of --methods has DKD or NKD in it"),
        (["--warmup-epochs", "2"], "--warmup-epochs has no effect: ldrld is not one of --methods"),
        (["--crd-negatives", "9"], "--crd-negatives has no effect: crd is not one of --methods"),
        (["--icd-weight", "2", "--methods", "kd"], "--icd-weight has no effect: no method of --methods has iCD in it"),
        (["--no-local-base", "--methods", "sp"], "--local-base has no effect: no method of --methods has iCD in it"),
        (["--data-folder", "x"], "--data-folder has no effect: --data mnist5k has no archive"),
        (["--workers", "2"], "--workers has no effect: --data mnist5k is in memory"),
    ],
)
def test_an_option_that_nothing_reads(arguments: list[str], said: str) -> None:
    assert notes(*arguments) == [said]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--quick"],
        ["--compare"],
        ["--schedule", "steps", "--milestones", "3,4"],
        ["--methods", "all", "--crd-negatives", "9", "--dkd-beta", "1", "--ramp-epochs", "1", "--warmup-epochs", "1"],
        ["--icd-weight", "2", "--kd-weight", "0.5", "--local-base"],
    ],
)
def test_what_has_an_effect_is_not_spoken_of(arguments: list[str]) -> None:
    assert notes(*arguments) == []


def test_a_given_teacher_is_not_trained(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pt"
    file.touch()
    said = notes("--teacher-checkpoint", str(file), "--teacher-epochs", "3", "--cache", "x")
    assert said == [
        "--cache has no effect: there is nothing of the teacher to keep",
        "--teacher-epochs has no effect: the teacher's weights are given by --teacher-checkpoint",
    ]


def test_without_matplotlib_a_run_has_all_but_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("sklearn", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}: pip install {module}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    tiny = ["--data", "digits", "--train-images", "20", "--epochs", "1", "--teacher-epochs", "1", "--seeds", "1"]
    places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path), "--device", "cpu", "--methods", "kd"]
    threads = torch.get_num_threads()
    assert train_example.main([*tiny, *places]) == 0
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "note: no figures: matplotlib is not installed" in printed
    assert ".png" not in printed
    assert not list((tmp_path / "out").glob("*.png"))
    assert not any(name.partition(".")[0] == "matplotlib" for name in sys.modules)
