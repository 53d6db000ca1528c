"""The readers of published archives, on tiny ones made here: what they return, and what they refuse."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the example is a script of the repository, not a part of the installed package

from training import cifar100, cifar100_python, cub200, squares  # noqa: E402
from training.data import balanced_subset  # noqa: E402
from training.errors import UsageError  # noqa: E402

CPU = torch.device("cpu")

Publish = Callable[[Any, dict[str, bytes]], Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Writes an archive of these files, and makes it the published one of a reader's module. Returns its folder."""

    def write(module: Any, files: dict[str, bytes]) -> Path:
        path = tmp_path / module.ARCHIVE.name
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(module, "ARCHIVE", module.ARCHIVE._replace(md5=digest))
        return tmp_path

    return write


@pytest.mark.parametrize(("module", "load"), [(cifar100, lambda at: cifar100.load(at, CPU)), (cub200, cub200.load)])
class TestChecks:
    def test_a_missing_archive(self, module: Any, load: Callable[[Path], object], tmp_path: Path) -> None:
        if module is cub200:
            pytest.importorskip("PIL", reason="CUB-200-2011 needs Pillow: pip install pillow")
        with pytest.raises(UsageError) as raised:
            load(tmp_path / "my data")
        name = module.ARCHIVE.name
        first, *commands = str(raised.value).splitlines()
        assert first.startswith(f"{tmp_path}/my data/{name} is missing. Get it (")
        assert commands == [
            f"  mkdir -p '{tmp_path}/my data'",
            f"  curl --fail --location --output '{tmp_path}/my data/{name}' {module.ARCHIVE.url}",
        ]

    def test_another_file(self, module: Any, load: Callable[[Path], object], tmp_path: Path) -> None:
        if module is cub200:
            pytest.importorskip("PIL", reason="CUB-200-2011 needs Pillow: pip install pillow")
        (tmp_path / module.ARCHIVE.name).write_bytes(b"cut sh")
        got = hashlib.md5(b"cut sh", usedforsecurity=False).hexdigest()
        message = rf"{module.ARCHIVE.name} is not .*expected MD5 {module.ARCHIVE.md5}, got {got}.*\n.*\n.*curl"
        with pytest.raises(UsageError, match=message):
            load(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [module.ARCHIVE.name]


def record(fine: int, value: int) -> bytes:
    """One image, whose bytes count up from `value`."""
    return bytes([fine // 5, fine, *((value + byte) % 256 for byte in range(3072))])


class OfPython2(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, as the published pickles have them."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, content: str | bytes) -> None:
        encoded = content.encode() if isinstance(content, str) else content
        self.write(  # type: ignore[attr-defined]  # missing in the types
            pickle.BINSTRING + struct.pack("<i", len(encoded)) + encoded
        )

    dispatch[str] = dispatch[bytes] = save_string


def pickled(records: bytes) -> bytes:
    """The same images as torchvision keeps them."""
    rows = np.frombuffer(records, dtype=np.uint8).reshape(-1, 3074)
    content = io.BytesIO()
    saved = {"data": rows[:, 2:].copy(), "fine_labels": rows[:, 1].tolist(), "batch_label": "of one"}
    OfPython2(content, protocol=2).dump(saved)
    return content.getvalue()


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


class TestCifar100:
    def test_load(self, publish: Publish) -> None:
        train = record(7, 0) + record(99, 3) + record(0, 250)
        folder = publish(cifar100, {"cifar-100-binary/test.bin": record(42, 9), "cifar-100-binary/train.bin": train})
        images = cifar100.load(folder, CPU)
        assert images.train_images.shape == (3, 3, 32, 32)
        assert images.train_images.dtype == torch.float32
        assert images.train_labels.tolist() == [7, 99, 0]
        assert images.test_labels.tolist() == [42]
        assert images.train_labels.dtype == torch.int64
        assert images.classes == 100
        channel, row, column = 2, 5, 17
        byte = (3 + channel * 1024 + row * 32 + column) % 256
        expected = (byte / 255 - cifar100.MEAN[channel]) / cifar100.DEVIATION[channel]
        assert images.train_images[1, channel, row, column].item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("form", ["archive", "folder"])
    def test_torchvisions_files_hold_the_same(
        self, form: str, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = record(7, 0) + record(99, 3) + record(0, 250)
        binary = {"cifar-100-binary/test.bin": record(42, 9), "cifar-100-binary/train.bin": train}
        expected = cifar100.load(publish(cifar100, binary), CPU)
        (tmp_path / cifar100.ARCHIVE.name).unlink()
        pickles = {"train": pickled(train), "test": pickled(record(42, 9))}
        digests = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in pickles.items()}
        monkeypatch.setattr(cifar100_python, "MD5", digests)
        if form == "archive":
            publish(cifar100_python, {f"cifar-100-python/{name}": content for name, content in pickles.items()})
        else:
            write_folder(tmp_path / "cifar-100-python", pickles)
        images = cifar100.load(tmp_path, CPU)
        assert images.content == expected.content
        assert images.train_labels.tolist() == [7, 99, 0]

    def test_an_extracted_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cifar100, "PARTS", {"train": 2, "test": 1})
        files = {"train.bin": record(7, 0) + record(99, 3), "test.bin": record(42, 9)}
        write_folder(tmp_path / "cifar-100-binary", files)
        assert cifar100.load(tmp_path, CPU).train_labels.tolist() == [7, 99]
        (tmp_path / "cifar-100-binary" / "test.bin").write_bytes(record(42, 9)[:-1])
        with pytest.raises(UsageError, match=r"test\.bin is not the published file.*expected 3074 bytes, got 3073"):
            cifar100.load(tmp_path, CPU)
        (tmp_path / "cifar-100-binary" / "test.bin").unlink()
        with pytest.raises(UsageError, match=r"cifar-100-binary is not whole .*: extract cifar-100-binary\.tar\.gz"):
            cifar100.load(tmp_path, CPU)

    def test_another_pickle_runs_no_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wrong checksum is refused before anything is read, and reading can make nothing but arrays."""
        write_folder(tmp_path / "cifar-100-python", {"train": b"other", "test": b"other"})
        with pytest.raises(UsageError, match=r"train is not the published file.*expected MD5 16019d7e3df5f24257cddd"):
            cifar100.load(tmp_path, CPU)
        with pytest.raises(pickle.UnpicklingError, match=r"posix\.system is no part of an array"):
            cifar100_python._read(pickle.dumps(Harmful()))

    def test_augmented(self) -> None:
        """Every image is a window of its frame or of the mirrored frame; all windows are drawn, as often mirrored."""
        image = torch.randn(1, 3, 32, 32)
        black = cifar100.normalized(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))
        black[:, :, 4:36, 4:36] = image
        windows = {
            window.contiguous().numpy().tobytes(): (side, top, left)
            for side, frame in enumerate((black, black.flip(3)))
            for top in range(9)
            for left in range(9)
            for window in (frame[0, :, top : top + 32, left : left + 32],)
        }
        drawn = cifar100.augmented(image.expand(4000, -1, -1, -1), torch.Generator().manual_seed(0))
        assert drawn.is_contiguous(memory_format=torch.channels_last)
        found = [windows[one.contiguous().numpy().tobytes()] for one in drawn]
        assert set(found) == set(windows.values())
        assert abs(sum(side for side, _, _ in found) / 4000 - 0.5) < 0.04

    def test_augmented_depends_on_the_generator_alone(self) -> None:
        images = torch.randn(6, 3, 32, 32)
        first, again, other = (cifar100.augmented(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert first.equal(again)
        assert not first.equal(other)


SIZES = ((300, 400), (512, 256), (260, 260), (300, 300), (280, 310))
"""(width, height) of the photographs; the last is for testing."""
LABELS = (1, 200, 3, 3, 2)


def jpeg(size: tuple[int, int], mode: str = "RGB") -> bytes:
    """Red grows to the right and green downwards."""
    image = pytest.importorskip("PIL.Image", reason="CUB-200-2011 needs Pillow: pip install pillow")
    width, height = size
    bands = [image.linear_gradient("L").rotate(angle).resize(size) for angle in (90, 0)]
    buffer = io.BytesIO()
    picture = image.merge("RGB", [*bands, image.new("L", (width, height))])
    (picture if mode == "RGB" else picture.convert(mode)).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def birds() -> dict[str, bytes]:
    """The files of a tiny CUB-200-2011."""
    names = [f"{label:03}.Bird/Bird_{number}.jpg" for number, label in enumerate(LABELS, 1)]
    table = {
        "images": [f"{number} {name}" for number, name in enumerate(names, 1)],
        "image_class_labels": [f"{number} {label}" for number, label in enumerate(LABELS, 1)],
        "train_test_split": [f"{number} {int(number < 5)}" for number in range(1, 6)],
    }
    lists = {f"CUB_200_2011/{name}.txt": "\n".join(lines).encode() for name, lines in table.items()}
    modes = ("RGB", "RGB", "L", "RGB", "RGB")
    photos = [jpeg(size, mode) for size, mode in zip(SIZES, modes, strict=True)]
    return {
        **lists,
        **{f"CUB_200_2011/images/{name}": photo for name, photo in zip(names, photos, strict=True)},
        "attributes.txt": b"1 long",
        "CUB_200_2011/parts/parts.txt": b"1 back",
    }


class TestCub200:
    def test_load(self, publish: Publish) -> None:
        folder = publish(cub200, birds())
        split = cub200.load(folder)
        assert split.train.labels.tolist() == [0, 199, 2, 2]
        assert split.test.labels.tolist() == [1]
        assert split.train.files[1] == folder / "CUB_200_2011/images/200.Bird/Bird_2.jpg"
        assert all(file.is_file() for part in split for file in part.files)
        assert sorted(path.name for path in folder.iterdir()) == ["CUB_200_2011", "CUB_200_2011.tgz"]
        assert not (folder / "CUB_200_2011/parts").exists()

    def test_extracted_once(self, publish: Publish) -> None:
        folder = publish(cub200, birds())
        first = cub200.load(folder)
        (folder / "CUB_200_2011.tgz").unlink()
        assert cub200.load(folder).train.files == first.train.files

    @pytest.mark.parametrize("name", ["CUB_200_2011/images/../../../escaped.jpg", "CUB_200_2011/images//../../../../x"])
    def test_a_path_that_leads_outside(self, publish: Publish, name: str) -> None:
        folder = publish(cub200, {**birds(), name: b"outside"})
        with pytest.raises(UsageError, match="cannot be extracted"):
            cub200.load(folder)
        assert [path.name for path in folder.iterdir()] == ["CUB_200_2011.tgz"]
        assert not (folder.parent / "escaped.jpg").exists()

    @pytest.mark.parametrize("damage", ["images.txt", "image_class_labels.txt"])
    def test_what_is_not_whole(self, publish: Publish, damage: str) -> None:
        folder = publish(cub200, birds())
        cub200.load(folder)
        path = folder / "CUB_200_2011" / damage
        path.write_text("1 1") if damage.startswith("image_class") else path.unlink()
        with pytest.raises(UsageError, match=r"CUB_200_2011 is not whole.*delete it and start again"):
            cub200.load(folder)

    def test_without_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(UsageError, match="pip install pillow"):
            cub200.load(tmp_path)

    def test_epoch_batches(self, publish: Publish) -> None:
        photos = cub200.load(publish(cub200, birds())).train
        batches = list(squares.epoch_batches(photos, 3, seed=0, epoch=1, device=CPU))
        assert len(batches) == 1  # the last image fills no batch
        images, labels = batches[0]
        assert images.shape == (3, 3, 224, 224)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= {0, 199, 2}

    def test_epoch_batches_depend_on_seed_and_epoch_alone(self, publish: Publish) -> None:
        photos = cub200.load(publish(cub200, birds())).train

        def epoch(seed: int, number: int, workers: int = 0) -> Tensor:
            return torch.cat([images for images, _ in squares.epoch_batches(photos, 2, seed, number, CPU, workers)])

        first = epoch(0, 1)
        assert first.equal(epoch(0, 1, workers=2))
        assert not first.equal(epoch(0, 2))
        assert not first.equal(epoch(1, 1))

    def test_random_squares(self, publish: Publish) -> None:
        """Mirrored or not, red and green say where a square was cut: anywhere, but not outside."""
        photos = cub200.load(publish(cub200, birds())).train.at(torch.tensor([3] * 40))
        (images, labels), *rest = squares.epoch_batches(photos, 40, 0, 0, CPU)
        assert not rest
        assert labels.tolist() == [2] * 40
        red, green = pixels_of(images)[:, 0].mean((1, 2)), pixels_of(images)[:, 1].mean((1, 2))
        for mean in red, green:
            assert 105 < mean.min() < 118
            assert 137 < mean.max() < 150
        is_mirrored = pixels_of(images)[:, 0, :, 0].mean(1) > pixels_of(images)[:, 0, :, -1].mean(1)
        assert 10 <= is_mirrored.sum() <= 30
        assert (pixels_of(images)[:, 1, -1].mean(1) > pixels_of(images)[:, 1, 0].mean(1)).all()

    def test_ordered_batches(self, publish: Publish) -> None:
        """Every image in its order, the last batch too; the square in the middle, so that the gradients are centred."""
        split = cub200.load(publish(cub200, birds()))
        batches = list(squares.ordered_batches(split.train, 3, CPU))
        assert [len(images) for images, _ in batches] == [3, 1]
        assert torch.cat([labels for _, labels in batches]).equal(split.train.labels)
        means = pixels_of(torch.cat([images for images, _ in batches])).mean((2, 3))
        colours = means[[0, 1, 3]]
        torch.testing.assert_close(colours[:, :2], torch.full((3, 2), 127.5), rtol=0, atol=1.5)
        assert (means[2] - means[2].mean()).abs().max() < 1  # from a file without colours

    def test_at(self, publish: Publish) -> None:
        photos = cub200.load(publish(cub200, birds())).train
        chosen = photos.at(balanced_subset(photos.labels[2:], 1, seed=0) + 2)
        assert chosen.labels.tolist() == [2]
        assert len(chosen.files) == 1


def pixels_of(images: Tensor) -> Tensor:
    """From 0 to 255."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (squares.MEAN, squares.DEVIATION))
    return 255 * (images * deviation + mean)
