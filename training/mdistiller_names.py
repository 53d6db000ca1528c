"""The names that mdistiller's CIFAR networks give their weights, for the teachers of the paper's tables.

mdistiller publishes its teachers as {"model": state_dict}; the networks are those of its models/cifar: resnet.py,
resnetv2.py, wrn.py and vgg.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from training.networks import Classifier, Network
from training.paper_networks.resnet import Residual
from training.paper_networks.wide_resnet import WideBlock

Pairs = Iterator[tuple[str, str]]
"""Their name of a layer, and ours."""


def translated(weights: dict[str, Tensor], name: str, network: Network) -> dict[str, Tensor]:
    """The weights under the names of `network`, where they have mdistiller's; else as they are.

    Args:
        weights: by their names.
        name: of the network, as --teacher has it.
        network: the one they are for.
    """
    if name not in _LAYERS or not isinstance(network, Classifier) or weights.keys() & network.state_dict().keys():
        return weights
    ours = dict(_LAYERS[name](network.body))
    parts = {key: key.rpartition(".") for key in weights}
    found = {f"{ours.get(layer, layer)}.{part}": weights[key] for key, (layer, _, part) in parts.items()}
    return _without_biases_before_norms(found, network) if name == "vgg13" else found


def _resnet(body: nn.Module, convolutions: int, shortcut: str, head: str) -> Pairs:
    yield from (("conv1", "body.0.0"), ("bn1", "body.0.1"), (head, "head"))
    for theirs, index in _blocks(body, Residual, "layer{}.{}"):
        for number in range(convolutions):
            yield f"{theirs}.conv{number + 1}", f"body.{index}.residual.{2 * number}.0"
            yield f"{theirs}.bn{number + 1}", f"body.{index}.residual.{2 * number}.1"
        for part in (0, 1):
            yield f"{theirs}.{shortcut}.{part}", f"body.{index}.shortcut.{part}"


def _resnet32x4(body: nn.Module) -> Pairs:
    return _resnet(body, 2, "downsample", "fc")


def _resnet50(body: nn.Module) -> Pairs:
    return _resnet(body, 3, "shortcut", "linear")


def _wide_resnet(body: nn.Module) -> Pairs:
    last = max(int(name) for name, layer in body.named_children() if isinstance(layer, nn.BatchNorm2d))
    yield from (("conv1", "body.0"), ("bn1", f"body.{last}"), ("fc", "head"))
    layers = {"bn1": "start.0", "conv1": "residual.0", "bn2": "residual.1", "conv2": "residual.3"}
    for theirs, index in _blocks(body, WideBlock, "block{}.layer.{}"):
        for layer, own in (layers | {"convShortcut": "shortcut"}).items():
            yield f"{theirs}.{layer}", f"body.{index}.{own}"


def _vgg13(body: nn.Module) -> Pairs:
    yield "classifier", "head"
    convolutions = (int(name) for name, layer in body.named_children() if isinstance(layer, nn.Sequential))
    for count, index in enumerate(convolutions):
        for part in (0, 1):
            yield f"block{count // 2}.{3 * (count % 2) + part}", f"body.{index}.{part}"


_LAYERS: dict[str, Callable[[nn.Module], Pairs]] = {
    "resnet32x4": _resnet32x4,
    "resnet50": _resnet50,
    "wrn-40-2": _wide_resnet,
    "vgg13": _vgg13,
}


def _blocks(body: nn.Module, kind: type[nn.Module], name: str) -> Iterator[tuple[str, int]]:
    """Their name of every block, (stage, block) put into `name`, and its place in our body.

    A stage begins with a block that has a shortcut of its own.
    """
    stage = block = 0
    for place, layer in body.named_children():
        if isinstance(layer, kind):
            is_first = any(name.startswith("shortcut.") for name, _ in layer.named_parameters())
            stage, block = (stage + 1, 0) if is_first else (stage, block + 1)
            yield name.format(stage, block), int(place)


def _without_biases_before_norms(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Their VGG's convolutions add a bias that BatchNorm takes off again: b less from its running mean is the same."""
    own = network.state_dict().keys()
    biases = {name: value for name, value in weights.items() if re.search(r"\.0\.bias$", name) and name not in own}
    means = {re.sub(r"0\.bias$", "1.running_mean", name): value for name, value in biases.items()}
    kept = {name: value for name, value in weights.items() if name not in biases}
    return {name: value - means[name] if name in means else value for name, value in kept.items()}
