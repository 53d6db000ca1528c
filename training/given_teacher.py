"""A teacher whose trained weights are given: --teacher-checkpoint."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from training.data import DataSet
from training.errors import UsageError
from training.mdistiller_names import translated
from training.networks import LibraryModel, LogitsAlone, Network
from training.teacher_network import make_teacher

OPTION = "--teacher-checkpoint"
NESTED = ("trainer", "model", "state_dict", "network")
"""Under these names a checkpoint may hold the weights: mdistiller's has "model", this example's "state_dict" for a
student, and "network" in "trainer" for a teacher."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
MOST_NAMED = 5


class GivenTeacher:
    """A network of --teacher with the weights of a file; there is nothing to train."""

    epochs = epochs_done = 0

    def __init__(
        self, images: DataSet, settings: dict[str, Any], file: Path, cache: Path, device: torch.device
    ) -> None:
        """`cache`: where its outputs are kept, if they are.

        Raises:
            UsageError: the file is not there, holds no weights, or those of another network.
        """
        network = make_teacher(images, settings)
        weights = translated(read_weights(file), settings["teacher"], network)
        load_weights(network, weights, f"{OPTION} {file}, --teacher {settings['teacher']}")
        self.network = network.to(device)
        data = re.sub(r"[^A-Za-z0-9]+", "-", settings["data"])
        self.path = cache / f"teacher-{data}-{settings['teacher_checkpoint']}.pt"
        self.source = f"{file}: the teacher's weights, as they were given"

    def finish(self, progress: Callable[[int], None]) -> Network:
        """The network, frozen."""
        return self.network.eval().requires_grad_(False)


def digest(file: Path) -> str:
    """Of the file's content, for a run to know it again."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise UsageError(f"{OPTION}: {error}") from error


def read_weights(file: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by their names, without what wrappers put before these. No code of it is run.

    Raises:
        UsageError: it cannot be read, or holds no weights.
    """
    try:
        is_safetensors = file.suffix == ".safetensors"
        content = _read_safetensors(file) if is_safetensors else torch.load(file, "cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UsageError(f"{OPTION} {file} is not a checkpoint of weights alone ({error})") from error
    for name in NESTED:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UsageError(
            f"{OPTION} {file} must hold tensors by their names, by themselves or under {', '.join(NESTED)}"
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(
            f"{OPTION} {file} needs the package safetensors, which could not be imported ({error}). "
            "Install it: python -m pip install safetensors"
        ) from error
    weights: dict[str, Tensor] = load_file(file)
    return weights


def load_weights(network: Network, weights: dict[str, Tensor], what: str) -> None:
    """Gives the network these weights, every one of them; `what` is what an error calls them.

    Raises:
        UsageError: names or shapes are not the network's; the message has the first of them.
    """
    model = network.model if isinstance(network, LibraryModel | LogitsAlone) else network
    own = model.state_dict()
    counts = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
    weights = counts | weights  # files of old PyTorch lack these counts, and no output depends on them
    common = [name for name in own if name in weights]
    shapes = {name: (tuple(weights[name].shape), tuple(own[name].shape)) for name in common}
    others = [f"{name} {came} for {expected}" for name, (came, expected) in shapes.items() if came != expected]
    wrong = [
        _some("missing", sorted(own.keys() - weights.keys())),
        _some("unexpected", sorted(weights.keys() - own.keys())),
        _some("of another shape", others),
    ]
    if any(wrong):
        raise UsageError(f"{what}: the weights are not this network's: {'; '.join(filter(None, wrong))}")
    model.load_state_dict(weights)


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{kind} {', '.join(names[:MOST_NAMED])}{more}" if names else ""
