"""Weights that timm and torchvision publish, as what a teacher starts from: --pretrained."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from training.data import Statistics
from training.errors import UsageError
from training.networks import LibraryModel, LogitsAlone, library

OPTION = "--pretrained"


class Published(NamedTuple):
    """What a library says of a model's weights."""

    statistics: Statistics
    classes: int


def published(name: str) -> Published:
    """Without fetching anything.

    Args:
        name: as --teacher has it.

    Raises:
        UsageError: it is no library's model, or there are no weights of it.
    """
    if ":" not in name:
        raise UsageError(f"{OPTION} needs a teacher of timm:NAME or torchvision:NAME, got --teacher {name}")
    package, model_name = library(name, f"{OPTION}, --teacher {name}")
    if name.startswith("timm:"):
        config = package.models.get_pretrained_cfg(model_name)
        if config is None or not any((config.url, config.hf_hub_id, config.file)):
            raise UsageError(f"{OPTION}: timm has no weights of --teacher {name}")
        return Published(Statistics(tuple(config.mean), tuple(config.std)), config.num_classes)
    weights = _torchvision_weights(package, name)
    change = weights.transforms()
    return Published(Statistics(tuple(change.mean), tuple(change.std)), len(weights.meta["categories"]))


def load(network: LibraryModel | LogitsAlone, name: str, channels: int) -> None:
    """Gives the network of timm or torchvision its published weights, a head for other classes excepted.

    Args:
        network: a model of theirs.
        name: as --teacher has it.
        channels: of the images.

    Raises:
        UsageError: the weights cannot be had here.
    """
    package, model_name = library(name, OPTION)
    try:
        if name.startswith("timm:"):
            source = package.create_model(model_name, pretrained=True, in_chans=channels)
        else:
            source = package.get_model(model_name, weights=_torchvision_weights(package, name))
    except UsageError:
        raise
    except Exception as error:  # whatever a hub's client raises where there is no network
        raise UsageError(
            f"{OPTION}: the weights of --teacher {name} cannot be had here ({type(error).__name__}: {error}). Fetch "
            "them where there is a network, and give the file with --teacher-checkpoint"
        ) from error
    model = network.model
    own: dict[str, Tensor] = model.state_dict()
    fitting = {key: value for key, value in source.state_dict().items() if key in own and value.shape == own[key].shape}
    model.load_state_dict(own | fitting)


def on_channels(statistics: Statistics, channels: int) -> Statistics:
    """Of as many channels; grey images take the means of red, green and blue, as timm does."""
    if channels == 1:
        return Statistics(*((sum(values) / len(values),) for values in statistics))
    return statistics


def _torchvision_weights(package: Any, name: str) -> Any:
    try:
        return package.get_model_weights(name.partition(":")[2]).DEFAULT
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{OPTION}: torchvision has no weights of --teacher {name} ({error})") from error
