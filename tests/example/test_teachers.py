"""Teachers that come with weights: those that libraries publish, mdistiller's files, statistics of their own."""

from __future__ import annotations

import functools
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mdistiller_networks import TEACHERS
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from small_images import small_images  # noqa: E402

import train_example  # noqa: E402
from training import given_teacher, networks, options, pretrained, settings  # noqa: E402
from training.data import Statistics  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.mdistiller_names import translated  # noqa: E402

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.25, 0.75), (0.2, 0.1, 0.4)
TINY = ["--data", "digits", "--train-images", "20", "--epochs", "1", "--seeds", "1", "--device", "cpu"]


class Model(nn.Module):
    """What a library makes: with a map that is pooled, or with logits of the largest pixel."""

    def __init__(self, channels: int, classes: int, *, is_pooled: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 3, stride=2)
        self.fc = nn.Linear(6, classes)
        self.is_pooled = is_pooled

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images).relu()
        return self.fc(features.mean((2, 3)) if self.is_pooled else features.amax((2, 3)))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A timm that has weights of "tiny", for 10 classes and images of its own statistics; of "largest" it has none."""

    def create_model(name: str, pretrained: bool, num_classes: int = 10, in_chans: int = 3) -> nn.Module:
        model = Model(in_chans, num_classes, is_pooled=name != "largest")
        if pretrained:
            if library.is_offline:
                raise OSError("no route to host")
            for parameter in model.parameters():
                nn.init.constant_(parameter, 0.125)
        return model

    config = types.SimpleNamespace(mean=MEAN, std=STD, num_classes=10, url="", hf_hub_id="timm/tiny", file=None)
    library = types.ModuleType("timm")
    library.is_offline = False  # type: ignore[attr-defined]
    library.create_model = create_model  # type: ignore[attr-defined]
    configs = {"tiny": config}
    library.models = types.SimpleNamespace(get_pretrained_cfg=configs.get)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", library)
    threads = torch.get_num_threads()
    yield library
    torch.set_num_threads(threads)


def resolved(*arguments: str, classes: int = 10, channels: int = 3) -> dict[str, Any]:
    chosen = options.parse(list(arguments))
    return settings.resolved(chosen, settings.make_icd(chosen, CPU), small_images(classes, channels), CPU)


class TestPretrained:
    def test_statistics_are_those_of_the_weights(self, timm: types.ModuleType) -> None:
        found = resolved("--teacher", "timm:tiny", "--pretrained")
        assert (found["teacher_mean"], found["teacher_std"]) == (MEAN, STD)
        grey = resolved("--teacher", "timm:tiny", "--pretrained", channels=1)
        assert grey["teacher_mean"] == (0.5,)
        plain = resolved("--teacher", "timm:tiny")
        assert (plain["teacher_mean"], plain["teacher_std"]) == ((0.0,), (1.0,))

    def test_a_head_for_other_classes_is_new(self, timm: types.ModuleType) -> None:
        for classes, is_new in ((10, False), (7, True)):
            network = networks.make("timm:tiny", "teacher", 3, 9, classes, seed=0)
            assert isinstance(network, networks.LibraryModel)
            pretrained.load(network, "timm:tiny", channels=3)
            weights = network.model.state_dict()
            assert (weights["stem.weight"] == 0.125).all()
            assert bool((weights["fc.weight"] == 0.125).all()) != is_new

    def test_a_run_of_weights_as_they_are(self, timm: types.ModuleType, tmp_path: Path) -> None:
        places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "teachers")]
        teacher = ["--teacher", "timm:tiny", "--pretrained", "--teacher-epochs", "0", "--methods", "kd"]
        assert train_example.main([*TINY, *places, *teacher]) == 0
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert summary["settings"]["teacher_mean"] == [0.5]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--teacher", "small", "--pretrained"], r"--pretrained needs a teacher of timm:NAME or torchvision:NAME"),
            (["--teacher", "timm:largest", "--pretrained"], "timm has no weights of --teacher timm:largest"),
            (["--teacher-epochs", "0"], "--teacher-epochs must be 1 or more without --pretrained"),
            (["--teacher-mean", "0.5"], "--teacher-mean and --teacher-std must have one value each, or 3"),
            (["--teacher-mean", "0.5,0.5", "--teacher-std", "1,1"], "must have one value each, or 3"),
        ],
    )
    def test_what_cannot_be(self, timm: types.ModuleType, arguments: list[str], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            resolved(*arguments)

    def test_a_new_head_must_be_trained(self, timm: types.ModuleType) -> None:
        with pytest.raises(UsageError, match=r"for 10 classes, and --data has 7: its new head must be trained"):
            resolved("--teacher", "timm:tiny", "--pretrained", "--teacher-epochs", "0", classes=7)

    def test_no_network(self, timm: types.ModuleType) -> None:
        timm.is_offline = True  # type: ignore[attr-defined]
        network = networks.make("timm:tiny", "teacher", 3, 9, 10, seed=0)
        assert isinstance(network, networks.LibraryModel)
        with pytest.raises(UsageError, match=r"cannot be had here \(OSError: no route to host\)"):
            pretrained.load(network, "timm:tiny", channels=3)

    @pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
    def test_what_real_libraries_say(self, name: str) -> None:
        library = name.partition(":")[0]
        pytest.importorskip(library, reason=f"needs {library}: pip install {library}")
        found = pretrained.published(name)
        assert found.classes == 1000
        assert found.statistics == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestStatistics:
    @pytest.mark.parametrize("name", ["narrow", "timm:tiny"])
    def test_a_teacher_sees_images_as_its_own_want_them(self, name: str, timm: types.ModuleType) -> None:
        pixels = torch.rand(2, 3, 9, 9)
        student = Statistics((0.1,), (0.3,))
        network = networks.make(name, "teacher", 3, 9, 10, seed=0).eval()
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        with torch.no_grad():
            expected = network((pixels - mean) / std).logits
            before = set(network.state_dict())
            network.takes_images_of(student, Statistics(MEAN, STD))
            torch.testing.assert_close(network((pixels - 0.1) / 0.3).logits, expected, rtol=1e-4, atol=1e-5)
        assert set(network.state_dict()) == before


class TestLogitsAlone:
    def test_methods_that_read_logits_take_any_model(self, timm: types.ModuleType, tmp_path: Path) -> None:
        places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "teachers"), "--teacher-epochs", "1"]
        pair = ["--teacher", "timm:largest", "--student", "timm:largest", "--methods", "none,kd,dkd,nkd,ldrld"]
        assert train_example.main([*TINY, *places, *pair]) == 0
        rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 5
        assert all("test_icd" not in row for row in rows)
        assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"compare.png", "curves.png"}

    def test_others_say_why_not(
        self, timm: types.ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "teachers"), "--teacher-epochs", "1"]
        pair = ["--student", "timm:largest", "--methods", "kd,icd-kd"]
        assert train_example.main([*TINY, *places, *pair]) == train_example.FAILED
        assert "--student timm:largest, 1 x 8 x 8 images: " in capsys.readouterr().err


class TestMdistiller:
    @pytest.mark.parametrize("name", TEACHERS)
    def test_its_weights_give_its_logits(self, name: str) -> None:
        torch.manual_seed(0)
        theirs, images = TEACHERS[name]().train(), torch.randn(6, 3, 32, 32)
        with torch.no_grad():
            theirs(images)  # running statistics that are not the fresh ones
            for parameter in theirs.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
            expected, _ = theirs.eval()(images)
        ours = networks.make(name, "teacher", 3, 32, 100, seed=1)
        weights = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}  # an old file
        given_teacher.load_weights(ours, translated(weights, name, ours), name)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(images).logits, expected, rtol=1e-4, atol=1e-5)

    def test_another_network_is_refused(self) -> None:
        ours = networks.make("resnet32x4", "teacher", 3, 32, 100, seed=1)
        weights = translated(TEACHERS["resnet50"]().state_dict(), "resnet32x4", ours)
        with pytest.raises(UsageError, match="the weights are not this network's: missing"):
            given_teacher.load_weights(ours, weights, "it")


class TestCompile:
    @pytest.mark.parametrize("name", ["narrow", "timm:tiny", "timm:largest"])
    def test_what_computes_is_compiled(
        self, name: str, timm: types.ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every convolution is in a graph, and weights keep their names. The compiler's last stage is left out."""
        graphs: list[torch.fx.GraphModule] = []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        network = networks.make(name, "student", 3, 9, 10, seed=0, needs_map=False)
        images, names = torch.randn(2, 3, 9, 9), set(network.state_dict())
        expected = network(images).logits
        network.compile_in_place()
        torch.testing.assert_close(network(images).logits, expected)
        counted = sum(str(node.target).count("conv2d") for graph in graphs for node in graph.graph.nodes)
        assert counted == sum(isinstance(layer, nn.Conv2d) for layer in network.modules())
        assert set(network.state_dict()) == names

    def test_a_compiled_run_keeps_plain_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
        places = ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "teachers"), "--teacher-epochs", "1"]
        threads = torch.get_num_threads()
        assert train_example.main([*TINY, *places, "--methods", "kd,icd-kd", "--compile"]) == 0
        torch.set_num_threads(threads)
        saved = torch.load(tmp_path / "out" / "students" / "kd-seed0-last.pt", weights_only=True)
        assert set(saved["state_dict"]) == set(networks.make("small", "student", 1, 8, 10, seed=0).state_dict())
