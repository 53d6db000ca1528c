"""The teacher's network, before its weights."""

from __future__ import annotations

from typing import Any

from training import networks
from training.cached_teacher import READS_MAPS
from training.data import DataSet, Statistics
from training.networks import Network


def make_teacher(images: DataSet, settings: dict[str, Any]) -> Network:
    """The untrained network of --teacher, which takes the images as the students see them.

    Args:
        images: what it is for.
        settings: as `resolved`.
    """
    shape = images.channels, images.side, images.classes
    seed = settings["teacher_seed"]
    network = networks.make(settings["teacher"], "teacher", *shape, seed=seed, needs_map=needs_map(settings))
    own = Statistics(tuple(settings["teacher_mean"]), tuple(settings["teacher_std"]))
    network.takes_images_of(images.statistics, own)
    return network


def needs_map(settings: dict[str, Any]) -> bool:
    """Whether a method reads the penultimate maps of its networks, and not their logits alone."""
    return any(method in READS_MAPS or "-" in method for method in settings["methods"])
