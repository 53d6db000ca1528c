"""Networks by name: two small ones for small images, those of the paper, and those of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from icd_kernels import FeatureTap, NetworkOutput
from icd_kernels.tap import TapError
from training.data import Statistics
from training.errors import UsageError
from training.options import SMALL
from training.paper_networks import BODIES
from training.seeds import derived_seed

SMALLEST_SIDE = 8


class Network(nn.Module):
    """What is trained: images to logits, the penultimate map and the head that classifies its mean."""

    input_factor: Tensor | None
    input_offset: Tensor | None

    def __init__(self, map_channels: int) -> None:
        """`map_channels`: 0 where the network gives logits alone."""
        super().__init__()
        self.map_channels = map_channels
        self.register_buffer("input_factor", None, persistent=False)
        self.register_buffer("input_offset", None, persistent=False)

    def takes_images_of(self, given: Statistics, own: Statistics) -> None:
        """Images come normalised by `given`, and are handed on as `own` would have them."""
        if given == own:
            return
        mean, deviation, own_mean, own_deviation = (torch.tensor(values)[:, None, None] for values in (*given, *own))
        self.input_factor = deviation / own_deviation
        self.input_offset = (mean - own_mean) / own_deviation

    def prepared(self, images: Tensor) -> Tensor:
        """The images as the network's own statistics normalise them."""
        if self.input_factor is None or self.input_offset is None:
            return images
        return images * self.input_factor + self.input_offset

    def compile_in_place(self) -> None:
        """From now on what computes the map runs under torch.compile; no weight has another name."""
        raise NotImplementedError


class Classifier(Network):
    """A body that makes the penultimate map (B, C, H, W), and a linear head."""

    def __init__(self, body: nn.Module, channels: int, classes: int) -> None:
        super().__init__(channels)
        self.body = body
        self.compiled: Callable[[Tensor], Tensor] | None = None
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> NetworkOutput:
        features = (self.compiled or self.body)(self.prepared(images))
        return NetworkOutput(self.head(features.mean(dim=(2, 3))), features, self.head)

    def compile_in_place(self) -> None:
        self.compiled = torch.compile(lambda images: self.body(images))  # Module.compile skips what is an nn.Sequential


class LibraryModel(Network):
    """A model of torchvision or timm, whose map and head are found by running it once."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        tap = FeatureTap(model)
        super().__init__(tap.probe(images).channels)
        self.model = model
        self.tap = tap

    def forward(self, images: Tensor) -> NetworkOutput:
        return self.tap(self.prepared(images))

    def compile_in_place(self) -> None:
        self.tap = FeatureTap(cast("nn.Module", torch.compile(self.model)))


class LogitsAlone(Network):
    """A model of torchvision or timm that gives no map which is pooled: for methods that read logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(map_channels=0)
        self.model = model
        self.compiled: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput((self.compiled or self.model)(self.prepared(images)))

    def compile_in_place(self) -> None:
        self.compiled = torch.compile(lambda images: self.model(images))


def make(name: str, role: str, channels: int, side: int, classes: int, seed: int, *, needs_map: bool = True) -> Network:
    """An untrained network whose weights depend on the seed alone.

    Args:
        name: "small", one of the paper's, "torchvision:NAME" or "timm:NAME".
        role: "teacher" or "student", which "small" is different for.
        channels: of the images.
        side: their height and width.
        classes: K.
        seed: draws the weights.
        needs_map: False takes models, too, whose logits are no function of the mean of a map.

    Raises:
        UsageError: the images are too small, or there is no such model, its package is missing, or it does not
            classify the mean of a map.
    """
    if side < SMALLEST_SIDE:
        raise UsageError(f"--{role} {name}: images of {side} x {side} pixels are too small for it: 8 x 8 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("init", seed))
        network: Network
        if ":" in name:
            network = _library_model(name, role, channels, side, classes, needs_map=needs_map)
        else:
            small = _small_teacher if role == "teacher" else _small_student
            bodies = {SMALL: small, "narrow": _narrow, "deep": _deep, **BODIES}
            network = Classifier(*bodies[name](channels, side), classes)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types


def library(name: str, option: str) -> tuple[Any, str]:
    """The package of "timm:NAME" or "torchvision:NAME", and NAME.

    Raises:
        UsageError: the package is missing; `option` begins the message.
    """
    library, _, model_name = name.partition(":")
    try:
        return import_module("torchvision.models" if library == "torchvision" else library), model_name
    except ImportError as error:
        raise UsageError(
            f"{option} needs the package {library}, which could not be imported ({error}). "
            f"Install it: python -m pip install {library}"
        ) from error


def _library_model(name: str, role: str, channels: int, side: int, classes: int, *, needs_map: bool) -> Network:
    option = f"--{role} {name}"
    package, model_name = library(name, option)
    images = torch.randn(2, channels, side, side)
    try:
        if name.startswith("timm:"):
            model = package.create_model(model_name, pretrained=False, num_classes=classes, in_chans=channels)
        else:
            model = package.get_model(model_name, weights=None, num_classes=classes)
        try:
            return LibraryModel(model, images)
        except TapError:
            if needs_map:
                raise
            model(images)  # images that it cannot take are told now
            return LogitsAlone(model)
    except (ValueError, RuntimeError) as error:  # no such model, images that it cannot take, or TapError
        raise UsageError(f"{option}, {channels} x {side} x {side} images: {error}") from error


def _small_teacher(channels: int, side: int) -> tuple[nn.Module, int]:
    """240,000 weights; its map is 7 x 7 for 28 x 28 images and 8 x 8 for 8 x 8 ones."""
    return _blocks(channels, (32, 64, 128, 128), (2, 2, 1, 1) if side > 16 else (1, 1, 1, 1))


def _small_student(channels: int, side: int) -> tuple[nn.Module, int]:
    """14,000 weights; its map is 4 x 4 for 28 x 28 and for 8 x 8 images."""
    return _blocks(channels, (16, 32, 32), (2, 2, 2) if side > 16 else (1, 2, 1))


def _narrow(channels: int, side: int) -> tuple[nn.Module, int]:
    """4,000 weights; maps as of the small student."""
    return _blocks(channels, (8, 16, 16), (2, 2, 2) if side > 16 else (1, 2, 1))


def _deep(channels: int, side: int) -> tuple[nn.Module, int]:
    """290,000 weights in six layers; its map is 7 x 7 for 28 x 28 images and 4 x 4 for 8 x 8 ones."""
    return _blocks(channels, (24, 48, 64, 96, 96, 128), (2, 1, 2, 1, 1, 1) if side > 16 else (1, 1, 2, 1, 1, 1))


def _blocks(inputs: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[nn.Module, int]:
    sizes = zip((inputs, *channels), channels, strides, strict=False)
    return nn.Sequential(*(_block(*size) for size in sizes)), channels[-1]


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
