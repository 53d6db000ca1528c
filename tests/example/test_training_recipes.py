"""The paper's recipes as files, and what overrides them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from small_images import small_images  # noqa: E402

from training import networks, settings  # noqa: E402
from training.options import METHODS, parse  # noqa: E402
from training.recipes import recipe_names  # noqa: E402

PAIRS = {
    "cub200": {"resnet32x4-mobilenetv2", "resnet32x4-shufflenetv1", "resnet50-shufflenetv1", "vgg13-vgg8"},
    "cifar100": {
        "resnet32x4-mobilenetv2", "resnet50-mobilenetv2", "wrn-40-2-vgg8", "resnet32x4-shufflenetv2",
        "vgg13-mobilenetv2",
    },
}  # fmt: skip


def test_every_pair_of_the_tables_has_its_recipe() -> None:
    assert set(recipe_names()) == {f"{data}-{pair}" for data, pairs in PAIRS.items() for pair in pairs}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_the_papers(name: str) -> None:
    chosen = parse(["--recipe", name])
    assert f"{chosen.data}-{chosen.teacher}-{chosen.student}" == name == chosen.out.name
    assert (chosen.epochs, chosen.batch_size, chosen.train_images) == (240, 64, None)
    assert (chosen.schedule, chosen.milestones) == ("steps", (150, 180, 210))
    assert (chosen.weight_decay, chosen.nesterov, chosen.clip) == (5e-4, False, 40)
    assert chosen.lr == (0.05 if chosen.student == "vgg8" else 0.01)
    assert chosen.dkd_beta == (6 if chosen.teacher in ("vgg13", "wrn-40-2") else 2)
    assert (chosen.icd_weight, chosen.ramp_epochs, chosen.warmup_epochs) == (2, 20, 20)
    for role in ("teacher", "student"):
        networks.make(getattr(chosen, role), role, 3, 224 if chosen.data == "cub200" else 32, 10, seed=0)


def test_what_is_given_overrides_quick_which_overrides_compare_which_overrides_the_recipe() -> None:
    chosen = parse(["--epochs", "7", "--recipe", "cub200-vgg13-vgg8", "--compare", "--quick", "--nesterov"])
    assert (chosen.epochs, chosen.teacher_epochs, chosen.seeds) == (7, 2, 1)
    assert (chosen.methods, chosen.nesterov) == (METHODS, True)
    assert (chosen.student, chosen.lr) == ("vgg8", 0.05)


def test_own_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"epochs": 24, "scales": [1, 3], "local_base": False, "schedule": "steps"}))
    chosen = parse(["--recipe", str(path)])
    assert (chosen.epochs, chosen.scales, chosen.local_base) == (24, (1, 3), False)
    device = torch.device("cpu")
    assert settings.resolved(chosen, settings.make_icd(chosen, device), small_images(100), device)["milestones"] == (
        15,
        18,
        21,
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"--recipe must be a path that ends in \.json or one of cifar100-"),
        ("{", r"mine\.json is not JSON"),
        ("[1]", r"mine\.json must hold one object of options"),
        ('{"recipe": "other"}', r"mine\.json must hold one object of options"),
        ('{"epochs": 0}', r"argument --epochs: must be a whole number of 1 or more, got '0'"),
        ('{"epoch": 3}', r"unrecognized arguments: --epoch 3"),
    ],
)
def test_wrong_recipes_are_named(
    content: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        parse(["--recipe", str(path)])
    assert re.search(said, capsys.readouterr().err)
