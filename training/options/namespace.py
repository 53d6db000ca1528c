"""The options after parsing, with their types."""

from __future__ import annotations

import argparse
from pathlib import Path


class Options(argparse.Namespace):
    """The options as they were given or by default. None: what it is then depends on others; the help says how."""

    data: str
    data_folder: Path
    workers: int
    student: str
    teacher: str
    train_images: int | None
    methods: tuple[str, ...]
    seeds: int
    seed: int
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    milestones: tuple[int, ...] | None
    weight_decay: float
    nesterov: bool
    clip: float | None
    amp: str
    compile: bool
    pretrained: bool
    teacher_mean: tuple[float, ...] | None
    teacher_std: tuple[float, ...] | None
    teacher_epochs: int
    teacher_lr: float
    teacher_seed: int
    teacher_checkpoint: Path | None
    cache: Path
    cache_teacher: bool
    baseline: str | None
    kd_weight: float
    kd_temperature: float
    dkd_beta: float
    crd_negatives: int
    ramp_epochs: int | None
    warmup_epochs: int | None
    local_base: bool | None
    preset: str
    gram: str | None
    pyramid: str | None
    normalize: str | None
    temperature: float | None
    scales: tuple[int, ...] | None
    scale_weights: tuple[float, ...] | None
    icd_weight: float | None
    backend: str
    out: Path
    resume: bool
    overwrite: bool
    recipe: str | None
    tensorboard: bool
    quick: bool
    compare: bool
    device: str
    threads: int
    given: frozenset[str]
    """Names of the options that stood on the command line or in a recipe."""
