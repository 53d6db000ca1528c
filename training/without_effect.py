"""Options that were given, and that this run does not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from training.options import FOLDER_PREFIX, Options

ARCHIVED = ("cifar100", "cub200")


def options_without_effect(options: Options, settings: dict[str, Any]) -> list[str]:
    """A line for each such option, with what it waits for.

    Args:
        options: as they were given.
        settings: as `resolved` has them.
    """
    found = (f"--{name.replace('_', '-')} has no effect: {why}" for name, why in _unread(options, settings))
    return sorted(found)


def _unread(options: Options, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for names, is_read, why in _conditions(options, settings):
        if not is_read:
            for name in options.given.intersection(names):
                yield name, why


def _conditions(options: Options, settings: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    """Options, whether something reads them, and what is said where nothing does."""
    bases = {method.rpartition("-")[2] for method in settings["methods"]}
    families = {method.rpartition("-")[0] for method in settings["methods"]}
    yield ("milestones",), settings["schedule"] == "steps", "--schedule is cosine"
    yield ("kd_weight",), "kd" in bases, "no method of --methods has KD in it"
    yield ("dkd_beta",), "dkd" in bases, "no method of --methods has DKD in it"
    yield ("ramp_epochs",), bool(bases & {"dkd", "nkd"}), "no method of --methods has DKD or NKD in it"
    yield ("warmup_epochs",), "ldrld" in bases, "ldrld is not one of --methods"
    yield ("crd_negatives",), "crd" in bases, "crd is not one of --methods"
    yield ("icd_weight", "local_base"), "icd" in families, "no method of --methods has iCD in it"
    given = settings["teacher_checkpoint"] is not None
    trained = ("teacher_epochs", "teacher_lr", "teacher_seed", "pretrained")
    yield trained, not given, "the teacher's weights are given by --teacher-checkpoint"
    yield ("data_folder",), settings["data"] in ARCHIVED, f"--data {settings['data']} has no archive"
    on_disk = settings["data"] == "cub200" or settings["data"].startswith(FOLDER_PREFIX)
    yield ("workers",), on_disk, f"--data {settings['data']} is in memory"
    yield ("cache",), not given or settings["cache_teacher"], "there is nothing of the teacher to keep"
