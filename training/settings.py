"""From the options to what is really run: the device, the objectives, and every value that the numbers depend on."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from icd_kernels import BackendUnavailableError, ICDLoss
from icd_kernels.backends import choose
from icd_kernels.objectives import Objective, make_objective
from icd_kernels.objectives.icd import icd_weight
from training import pretrained
from training.cached_teacher import READS_MAPS
from training.data import DataSet, Statistics
from training.errors import UsageError
from training.given_teacher import digest
from training.options import NO_DISTILLATION, Options
from training.processes import ALONE, Processes
from training.seeds import derived_seed

_PRESETS: dict[str, Callable[..., ICDLoss]] = {
    "balanced": partial(ICDLoss.balanced, 2),  # of as many classes: its weight alone follows from them, and is given
    "paper": ICDLoss.paper,
    "released": ICDLoss.released,
    "corrected": partial(ICDLoss.released, pyramid="adaptive"),
}
_LOCAL_PRESETS = ("released", "corrected")
"""Their base is on local logits."""
_PRESET_OVERRIDES = ("gram", "pyramid", "normalize", "temperature", "scales", "scale_weights")

SCALED_EPOCHS = 20 / 240
"""The share of a training over which the authors' DKD and NKD ramp up and LDRLD's learning rate warms up."""

MILESTONES = (150 / 240, 180 / 240, 210 / 240)
"""The shares of a training after which the paper's recipes lower the learning rate."""


def make_device(options: Options, processes: Processes = ALONE) -> torch.device:
    """The device of --device, for each of several processes its own GPU; --threads takes effect."""
    available = os.cpu_count() or 1
    if options.threads > available:
        raise UsageError(
            f"--threads must be at most the {available} that this machine runs at once, got {options.threads}"
        )
    torch.set_num_threads(options.threads)
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and processes.world_size > 1:
        return _own_gpu(device, processes)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs here"
        )
    return device


def _own_gpu(device: torch.device, processes: Processes) -> torch.device:
    """The GPU of this process's number."""
    if device.index is not None:
        raise UsageError(
            f"--device must be auto, cpu or cuda in several processes, where each takes a GPU of its own, got {device}"
        )
    if processes.local_world_size > torch.cuda.device_count():
        raise UsageError(
            f"--device cuda: {processes.local_world_size} processes need a GPU each, and PyTorch {torch.__version__} "
            f"sees {torch.cuda.device_count()} here: start fewer, or give --device cpu"
        )
    return torch.device("cuda", processes.local_rank)


def make_icd(options: Options, device: torch.device) -> ICDLoss:
    """The iCD loss of the preset and the options beside it, before its weight in the objective."""
    overrides = {name: getattr(options, name) for name in _PRESET_OVERRIDES if getattr(options, name) is not None}
    try:
        backend = choose(options.backend, device.type).name
        return _PRESETS[options.preset](**{**overrides, "backend": backend, "weight": 1.0})
    except BackendUnavailableError as error:
        raise UsageError(f"--backend: {error}") from error
    except ValueError as error:
        raise UsageError(f"iCD option: {error}") from error


def resolved(
    options: Options, icd: ICDLoss, images: DataSet, device: torch.device, processes: int = 1
) -> dict[str, Any]:
    """Every value that the numbers depend on, by the name of its option; numbers, strings and tuples only.

    "data_content" is a digest of the data, "processes" how many torchrun has started, 1 without it.
    """
    student = ("data", "student", "train_images", "methods", "seeds", "seed", "epochs", "batch_size", "lr")
    optimization = ("schedule", "weight_decay", "nesterov", "clip", "amp", "compile")
    teacher = ("teacher", "teacher_epochs", "teacher_lr", "teacher_seed", "pretrained")
    objectives = ("kd_weight", "kd_temperature", "dkd_beta", "crd_negatives")
    share = max(1, round(SCALED_EPOCHS * options.epochs))
    weight = options.icd_weight
    if weight is None:
        weight = icd_weight(icd.options.gram, icd.options.normalize, images.classes)
    statistics = _teacher_statistics(options, images)
    settings = {
        **{name: getattr(options, name) for name in (*student, *optimization, *teacher, *objectives)},
        **{name: getattr(icd.options, name) for name in _PRESET_OVERRIDES},
        "icd_weight": weight,
        "local_base": options.preset in _LOCAL_PRESETS if options.local_base is None else options.local_base,
        "ramp_epochs": share if options.ramp_epochs is None else options.ramp_epochs,
        "warmup_epochs": share if options.warmup_epochs is None else options.warmup_epochs,
        "milestones": _milestones(options),
        "baseline": _baseline(options),
        "teacher_checkpoint": None if options.teacher_checkpoint is None else digest(options.teacher_checkpoint),
        "teacher_mean": statistics.mean,
        "teacher_std": statistics.deviation,
        "cache_teacher": options.cache_teacher,
        "data_content": images.content,
        "backend": icd.backend,
        "device": str(device) if processes == 1 else device.type,
        "threads": options.threads,
        "processes": processes,
    }
    _check_objectives(settings)
    if options.amp == "fp16" and device.type == "cpu":
        raise UsageError("--amp fp16 needs a GPU: on a CPU take bf16")
    return settings


def _teacher_statistics(options: Options, images: DataSet) -> Statistics:
    """What the teacher's images are normalised by; --pretrained weights that cannot be used are told."""
    channels, mean, deviation = images.channels, options.teacher_mean, options.teacher_std
    own = images.statistics
    if options.pretrained and options.teacher_checkpoint is None:
        weights = pretrained.published(options.teacher)
        own = pretrained.on_channels(weights.statistics, channels)
        if options.teacher_epochs == 0 and weights.classes != images.classes:
            raise UsageError(
                f"--teacher-epochs 0: the weights of --teacher {options.teacher} are for {weights.classes} classes, "
                f"and --data has {images.classes}: its new head must be trained"
            )
    elif options.teacher_epochs == 0 and options.teacher_checkpoint is None:
        raise UsageError("--teacher-epochs must be 1 or more without --pretrained, got 0: nothing would train it")
    if mean is None and deviation is None:
        return own
    if mean is None or deviation is None or len(mean) != len(deviation) or len(mean) not in (1, channels):
        raise UsageError(
            f"--teacher-mean and --teacher-std must have one value each, or {channels}, as the images have channels; "
            f"got {mean} and {deviation}"
        )
    return Statistics(tuple(mean), tuple(deviation))


def make_student_objective(
    method: str, settings: dict[str, Any], labels: Tensor, channels: tuple[int, int], seed: int
) -> Objective:
    """The objective of a method; what CRD draws of its own depends on the seed alone.

    Args:
        method: one of the objectives' METHODS.
        settings: as `resolved`.
        labels: of the images a student is trained on, (n,).
        channels: of the student's and the teacher's map.
        seed: the student's.
    """
    chosen = _objective_options(method, settings)
    if method == "crd":
        sizes = {"student_channels": channels[0], "teacher_channels": channels[1], "dataset_size": len(labels)}
        chosen.update(sizes, labels=labels.cpu())
    classes = int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("objective", seed))
        return make_objective(method, num_classes=classes, backend=settings["backend"], **chosen).to(labels.device)


def _objective_options(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings say of a method, by the names of `make_objective`."""
    family, _, base = method.rpartition("-")
    chosen: dict[str, Any] = {}
    if base == "kd":
        share = settings["kd_weight"]
        chosen.update(ce_weight=1 - share, base_weight=share, temperature=settings["kd_temperature"])
    if base in ("dkd", "nkd"):
        chosen.update(ramp_epochs=settings["ramp_epochs"])
    if base == "dkd":
        chosen.update(beta=settings["dkd_beta"])
    if base == "crd":
        chosen.update(num_negatives=settings["crd_negatives"])
    if family:
        chosen.update(scales=settings["scales"], pyramid=settings["pyramid"])
    if family == "icd":
        same = ("gram", "normalize", "scale_weights", "icd_weight", "local_base")
        chosen.update({name: settings[name] for name in same}, icd_temperature=settings["temperature"])
    return chosen


def _check_objectives(settings: dict[str, Any]) -> None:
    """Builds every method once, for a wrong option to be told before the teacher is trained."""
    if settings["processes"] > 1 and "crd" in settings["methods"]:
        raise UsageError(
            "--methods must not have crd in several processes, whose memories of the images would differ, got "
            f"{settings['processes']} processes: leave it out, or start without torchrun"
        )
    read_maps = [method for method in settings["methods"] if method in READS_MAPS]
    if settings["cache_teacher"] and read_maps:
        raise UsageError(
            f"--cache-teacher keeps the teacher's logits, and {', '.join(read_maps)} of --methods read its maps: leave "
            "one of them out"
        )
    for method in settings["methods"]:
        try:
            if method != NO_DISTILLATION:
                make_student_objective(method, settings, torch.tensor([0, 1]), (1, 1), seed=0)
        except ValueError as error:
            raise UsageError(f"method {method}: {error}") from error


def _milestones(options: Options) -> tuple[int, ...]:
    """--milestones, or where the paper's recipes have them."""
    if options.milestones is not None:
        late = [milestone for milestone in options.milestones if milestone >= options.epochs]
        if late and options.schedule == "steps":
            raise UsageError(
                f"--milestones must be below --epochs, {options.epochs}, got {','.join(map(str, options.milestones))}: "
                f"{late[0]} never comes"
            )
        return options.milestones
    return tuple(max(1, round(share * options.epochs)) for share in MILESTONES)


def _baseline(options: Options) -> str:
    """--baseline, or kd where it is among the methods, or the first."""
    if options.baseline is None:
        return "kd" if "kd" in options.methods else options.methods[0]
    if options.baseline not in options.methods:
        raise UsageError(f"--baseline must be one of --methods, {', '.join(options.methods)}, got {options.baseline!r}")
    return options.baseline
