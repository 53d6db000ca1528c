"""Data sets beyond the packaged ones: photographs from folders, CIFAR-100's augmentation, runs on both."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

import train_example  # noqa: E402
from training import cifar100, cub200, sources  # noqa: E402
from training.data import Images  # noqa: E402
from training.errors import UsageError  # noqa: E402
from training.options import parse  # noqa: E402
from training.photographs import Photographs, read_folder  # noqa: E402

image_module = pytest.importorskip("PIL.Image", reason="photographs need Pillow: pip install pillow")

CPU = torch.device("cpu")
SHADES = {"dark": 30, "bright": 220}
"""In the order of their labels: bright 0, dark 1."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes by brightness: 33 images of each to train on, 2 to test on; in sizes that differ."""
    for part, count in (("train", 33), ("val", 2)):
        for name, shade in SHADES.items():
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                size = (24 + number, 30) if number % 2 else (40, 26)
                colour = (shade, shade, min(255, shade + number))
                image_module.new("RGB", size, colour).save(tmp_path / part / name / f"{number:02}.png")
    (tmp_path / "train" / "dark" / "notes.txt").write_text("no image")
    return tmp_path


def test_folders_give_every_image_with_its_class_and_position(folder: Path) -> None:
    photos = read_folder(folder, CPU, workers=0)
    assert (photos.classes, photos.channels, photos.side) == (2, 3, 224)
    assert photos.train_labels.bincount().tolist() == [33, 33]
    rows = torch.arange(0, 66, 3)
    batches = list(photos.train_batches(rows, 4, seed=1, epoch=2))
    assert len(batches) == photos.steps_per_epoch(len(rows), 4) == 5
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.unique().numel() == 20
    assert torch.equal(torch.cat([batch.labels for batch in batches]), photos.train_labels[rows][indices])
    brightness = torch.cat([batch.images.mean((1, 2, 3)) for batch in batches])
    assert torch.equal(brightness < 0, torch.cat([batch.labels for batch in batches]) == 1)
    again = next(photos.train_batches(rows, 4, seed=1, epoch=2))
    assert torch.equal(again.images, batches[0].images)


def test_test_images_are_in_order(folder: Path) -> None:
    photos = read_folder(folder, CPU, workers=0)
    batches = list(photos.test_batches(3))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), photos.test_labels)
    assert torch.equal(photos.test_images_of(torch.tensor([3]))[0], batches[1].images[0])


def test_unchanged_images_are_those_in_order(folder: Path) -> None:
    """What a cached teacher saw is what its students see."""
    photos = read_folder(folder, CPU, workers=0)
    for file in photos.train.files[:12]:
        noise = torch.randint(256, (280, 300, 3), dtype=torch.uint8).numpy()
        image_module.fromarray(noise).save(file)
    photos = dataclasses.replace(photos, train=photos.train.at(torch.arange(12)))
    in_order = torch.cat([batch.images for batch in photos.ordered_train_batches(4)])
    rows = torch.arange(2, len(photos.train_labels))
    for batch in photos.unchanged().train_batches(rows, 3, seed=1, epoch=2):
        assert torch.equal(batch.images, in_order[rows[batch.indices]])
    changed = next(photos.train_batches(rows, 3, seed=1, epoch=2))
    assert not torch.equal(changed.images, in_order[rows[changed.indices]])


def test_what_is_wrong_with_a_folder_is_named(folder: Path) -> None:
    photos = read_folder(folder, CPU, workers=0)
    with pytest.raises(UsageError, match=r"10 do not fill one of 64: lower --batch-size"):
        photos.steps_per_epoch(10, 64)
    (folder / "val" / "third").mkdir()
    with pytest.raises(UsageError, match=r"the same in train and val, got 2 and 3; in one alone: third"):
        read_folder(folder, CPU, workers=0)
    (folder / "train" / "third").mkdir()
    with pytest.raises(UsageError, match=r"train/third has no image: expected files that Pillow reads, such as \.jpg"):
        read_folder(folder, CPU, workers=0)
    with pytest.raises(UsageError, match=r"expected the folders train and test"):
        read_folder(folder / "train", CPU, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(folder: Path, workers: int) -> None:
    broken = folder / "train" / "dark" / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    photos = read_folder(folder, CPU, workers)
    with pytest.raises(UsageError, match=rf"^{broken} is not an image that Pillow can read"):
        list(photos.ordered_train_batches(16))


def test_folders_that_begin_with_a_dot_are_no_classes(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert read_folder(folder, CPU, workers=0).classes == 2


def test_nested_folders_and_other_formats(folder: Path) -> None:
    """Whatever Pillow reads is taken, wherever it lies in its class; the rest is counted."""
    nested = folder / "train" / "dark" / "night" / "cloudy"
    nested.mkdir(parents=True)
    for ending in ("tif", "gif", "JPG"):
        image_module.new("RGB", (30, 30), (30, 30, 30)).save(nested / f"more.{ending}")
    (nested / ".hidden.png").touch()
    (nested / "labels.csv").touch()
    (nested / "README").touch()
    photos = read_folder(folder, CPU, workers=0)
    assert photos.train_labels.bincount().tolist() == [33, 36]
    assert [path.name for path in photos.train.files if path.parent == nested] == ["more.JPG", "more.gif", "more.tif"]
    skipped = "files that no image ends like: 1 without an ending, 1 .csv, 1 .txt"
    assert photos.notes == (f"--data folder:{folder}: skipped {skipped}",)


def test_the_content_of_photographs(folder: Path, tmp_path: Path) -> None:
    """A moved folder is the same; a changed file, another name or another class makes it another."""
    before = read_folder(folder, CPU, workers=0).content
    moved = folder.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    assert read_folder(moved, CPU, workers=0).content == before
    image_module.new("RGB", (24, 30), (31, 30, 30)).save(moved / "train" / "dark" / "01.png")
    changed = read_folder(moved, CPU, workers=0).content
    (moved / "train" / "dark" / "02.png").rename(moved / "train" / "dark" / "99.png")
    renamed = read_folder(moved, CPU, workers=0).content
    assert len({before, changed, renamed}) == 3


def test_grey_of_16_bits_keeps_its_range(folder: Path) -> None:
    """A ramp of grey that Pillow would cut off at 255 of 65,535."""
    ramp = (torch.arange(256, dtype=torch.int32) * 256).repeat(256, 1).numpy().astype("uint16")
    image_module.fromarray(ramp).save(folder / "train" / "dark" / "00.png")
    photos = read_folder(folder, CPU, workers=0)
    dark = photos.train_labels.tolist().index(1)
    image = next(iter(photos.ordered_train_batches(dark + 1))).images[dark, 0]
    columns = image.mean(0)
    assert columns[-1] - columns[0] > 3  # of about 4 between black and white
    assert (columns.diff() > -1e-6).all()


@pytest.fixture
def images() -> Images:
    """A CIFAR-100 of 30 images and 3 classes."""
    draws = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(30, 3, 32, 32, generator=draws), torch.arange(30) % 3
    return Images(pixels, labels, pixels[:6], labels[:6], max_shift=4)


def test_cifar100_is_augmented_its_own_way(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "load", lambda folder, device: images)
    loaded = sources.load(parse(["--data", "cifar100"]), CPU)
    rows = torch.arange(3, 30)
    batches = list(loaded.train_batches(rows, 8, seed=0, epoch=0))
    indices = torch.cat([batch.indices for batch in batches])
    assert torch.equal(indices.sort().values, torch.arange(27))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.train_labels[rows][indices])
    again = list(loaded.train_batches(rows, 8, seed=0, epoch=0))
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(batches[0].images, images.train_images[rows][batches[0].indices])


def test_cub200_is_photographs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = read_folder(folder, CPU, workers=0)
    monkeypatch.setattr(cub200, "load", lambda at: cub200.Birds(photos.train, photos.test))
    loaded = sources.load(parse(["--data", "cub200"]), CPU)
    assert isinstance(loaded, Photographs)
    assert loaded.train == photos.train


def test_the_content_of_images_in_memory(images: Images) -> None:
    labels = images.train_labels.flip(0)
    brighter = dataclasses.replace(images, train_images=images.train_images + 0.5)
    others = (dataclasses.replace(images, train_labels=labels), brighter)
    assert dataclasses.replace(images).content == images.content
    assert len({images.content, *(other.content for other in others)}) == 3


def test_unchanged_images_in_memory(images: Images) -> None:
    for loaded in (images, dataclasses.replace(images, augment=cifar100.augmented)):
        in_order = torch.cat([batch.images for batch in loaded.ordered_train_batches(7)])
        assert torch.equal(in_order, images.train_images)
        rows = torch.arange(3, 30)
        for batch in loaded.unchanged().train_batches(rows, 8, seed=0, epoch=0):
            assert torch.equal(batch.images, in_order[rows[batch.indices]])


@pytest.fixture
def threads() -> Iterator[None]:
    """The example sets them for its own process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_example_runs_on_a_folder(folder: Path, threads: None) -> None:
    for module in ("matplotlib", "tqdm"):
        pytest.importorskip(module, reason=f"the example needs {module}: pip install {module}")
    arguments = ["--data", f"folder:{folder}", "--train-images", "all", "--batch-size", "33", "--seeds", "1"]
    places = ["--out", str(folder / "out"), "--cache", str(folder / "teachers"), "--device", "cpu"]
    short = ["--epochs", "1", "--teacher-epochs", "1", "--methods", "kd,crd", "--lr", "0.01"]
    assert train_example.main([*arguments, *places, *short]) == 0
    assert (folder / "out" / "grams.png").is_file()
