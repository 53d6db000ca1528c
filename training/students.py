"""What a run keeps of its students: the best and the last weights of each, with the settings they come of.

Weights stand under the model's own names: those of a model of timm or torchvision load into one that the library makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from training import checkpoint, networks
from training.networks import LibraryModel, LogitsAlone, Network
from training.state import Row, State

FOLDER = "students"
BEST, LAST = "best", "last"


def path_of(folder: Path, method: str, seed: int, which: str) -> Path:
    """The file of a student; `which` is "best", by the top-1 of the test images, or "last"."""
    return folder / FOLDER / f"{method}-seed{seed}-{which}.pt"


def keep(state: State, network: Network, row: Row, made: dict[str, Any]) -> None:
    """Writes a student that has finished an epoch, where that is its last, or its best so far.

    Args:
        state: of the run; its rows do not have `row` yet.
        network: the student.
        row: of the epoch.
        made: what `networks.make` was given, but for the seed: name, channels, side, classes and needs_map.
    """
    method, seed = row["method"], row["seed"]
    before = [other["test_top1"] for other in state.rows if (other["method"], other["seed"]) == (method, seed)]
    kept = {BEST: not before or row["test_top1"] > max(before), LAST: row["epoch"] == state.settings["epochs"]}
    content = {"state_dict": weights_of(network), "row": row, "made": made, "settings": state.settings}
    for which, is_kept in kept.items():
        if is_kept:
            checkpoint.save(path_of(state.folder, method, seed, which), content)


def weights_of(network: Network) -> dict[str, Tensor]:
    """By the names of the library's own model, where it is one."""
    return _named(network).state_dict()


def _named(network: Network) -> nn.Module:
    """The module whose names of weights are kept: the library's own model, where it is one."""
    return network.model if isinstance(network, LibraryModel | LogitsAlone) else network


def load(path: Path | str) -> Network:
    """The network of a file that :func:`keep` wrote, in evaluation mode.

    Raises:
        UsageError: it is no such file.
    """
    saved = checkpoint.load(Path(path))
    network = networks.make(role="student", seed=0, **saved["made"])
    _named(network).load_state_dict(saved["state_dict"])
    return network.eval()


def how_to_load(path: Path, made: dict[str, Any]) -> str:
    """A line of Python that loads it as `model`."""
    library, _, name = made["name"].partition(":")
    load = f'model.load_state_dict(torch.load("{path}", weights_only=True)["state_dict"])'
    classes, channels = made["classes"], made["channels"]
    if library == "timm":
        make = f'timm.create_model("{name}", num_classes={classes}, in_chans={channels})'
        return f"import timm, torch; model = {make}; {load}"
    if library == "torchvision":
        make = f'torchvision.models.get_model("{name}", num_classes={classes})'
        return f"import torch, torchvision; model = {make}; {load}"
    return f'from training import students; model = students.load("{path}")'
