"""The paper's networks: the shapes of their maps, their sizes, and that the example trains them."""

from __future__ import annotations

import copy
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

import train_example  # noqa: E402
from training import networks, options  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.paper_networks import BODIES  # noqa: E402

MAPS = {
    "resnet32x4": ((256, 8, 8), (256, 28, 28), 7.43),
    "resnet50": ((2048, 4, 4), (2048, 14, 14), 23.71),
    "wrn-40-2": ((128, 8, 8), (128, 28, 28), 2.26),
    "vgg13": ((512, 4, 4), (512, 28, 28), 9.46),
    "vgg8": ((512, 4, 4), (512, 28, 28), 3.97),
    "mobilenetv2": ((1280, 2, 2), (1280, 7, 7), 0.81),
    "shufflenetv1": ((960, 4, 4), (960, 14, 14), 0.95),
    "shufflenetv2": ((1024, 4, 4), (1024, 14, 14), 1.36),
}
"""The map of 32 x 32 and of 224 x 224 images, and the millions of parameters that are published for 100 classes."""


@pytest.mark.parametrize("name", MAPS)
def test_map_and_size(name: str) -> None:
    small, large, millions = MAPS[name]
    for side, expected in ((32, small), (224, large)):
        network = networks.make(name, "student", 3, side, 100, seed=0)
        with torch.no_grad():
            output = network.eval()(torch.zeros(1, 3, side, side))
        assert output.features is not None
        assert output.features.shape[1:] == expected
        assert output.logits.shape == (1, 100)
    network = networks.make(name, "student", 3, 32, 100, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_every_name_is_an_option_and_the_seed_decides_the_start() -> None:
    assert set(MAPS) == set(BODIES) == set(options.NETWORKS) - {options.SMALL, "narrow", "deep"}
    one, same, other = (networks.make("vgg8", "student", 1, 8, 10, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_copy_is_a_network_of_its_own() -> None:
    """An average of weights copies a network: what is done to the copy leaves the original alone."""
    network, images = networks.make("narrow", "student", 1, 8, 10, seed=0).eval(), torch.randn(2, 1, 8, 8)
    copied = copy.deepcopy(network)
    before = network(images).logits
    with torch.no_grad():
        next(copied.parameters()).mul_(-2)
    assert torch.equal(network(images).logits, before)
    assert not torch.equal(copied(images).logits, before)


@pytest.mark.parametrize(("name", "map_shape"), [("narrow", (16, 4, 4)), ("deep", (128, 7, 7))])
def test_the_other_small_networks(name: str, map_shape: tuple[int, int, int]) -> None:
    features = networks.make(name, "student", 1, 28, 10, seed=0)(torch.zeros(2, 1, 28, 28)).features
    assert features is not None
    assert features.shape[1:] == map_shape


class _Model(torch.nn.Module):
    """What a library makes."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(channels, 6, 3, stride=2)
        self.fc = torch.nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stem(images).relu().mean((2, 3)))


def _create_model(name: str, pretrained: bool, num_classes: int, in_chans: int) -> torch.nn.Module:
    if name != "tiny":
        raise RuntimeError(f"Unknown model ({name})")
    return _Model(in_chans, num_classes)


def test_models_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("timm")
    library.create_model = _create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", library)
    one, same, other = (networks.make("timm:tiny", "student", 1, 9, 10, seed) for seed in (0, 0, 1))
    images = torch.randn(3, 1, 9, 9)
    assert torch.equal(one(images).logits, same(images).logits)
    assert not torch.equal(one(images).logits, other(images).logits)
    assert one.map_channels == 6
    assert one(images).features.shape == (3, 6, 4, 4)
    with pytest.raises(UsageError, match=r"--student timm:huge, 1 x 9 x 9 images: Unknown model \(huge\)"):
        networks.make("timm:huge", "student", 1, 9, 10, seed=0)


@pytest.mark.parametrize("library", options.LIBRARIES)
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (library, f"{library}.models"):  # the latter may have been imported before
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"--teacher {library}:x needs .*python -m pip install {library}"):
        networks.make(f"{library}:x", "teacher", 3, 32, 10, seed=0)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t"])
def test_real_models_of_the_libraries(name: str) -> None:
    library = name.split(":")[0]
    pytest.importorskip(library, reason=f"needs {library}: pip install {library}")
    network = networks.make(name, "teacher", 3, 64, 10, seed=0)
    assert network(torch.randn(2, 3, 64, 64)).features.shape == (2, 512, 2, 2)


def test_images_too_small_are_named() -> None:
    with pytest.raises(UsageError, match=r"--student vgg13: images of 4 x 4 pixels are too small for it"):
        networks.make("vgg13", "student", 1, 4, 10, seed=0)


def test_the_example_distils_the_papers_networks(tmp_path: Path) -> None:
    for module in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}: pip install {module}")
    threads = torch.get_num_threads()
    arguments = ["--data", "digits", "--train-images", "20", "--epochs", "1", "--teacher-epochs", "1", "--seeds", "1"]
    places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path), "--device", "cpu"]
    pair = ["--teacher", "vgg8", "--student", "mobilenetv2", "--methods", "none,icd-kd", "--preset", "corrected"]
    steps = ["--schedule", "steps", "--clip", "40", "--no-nesterov"]
    try:
        assert train_example.main([*arguments, *places, *pair, *steps]) == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "out" / "grams.png").is_file()
