"""From the options to what is really run: the device, the loss, and every value that the numbers depend on."""

from __future__ import annotations

from typing import Any

import torch

from icd_kernels import BackendUnavailableError, ICDLoss
from icd_kernels.backends import choose
from training.errors import UsageError
from training.options import Options

_PRESETS = {"paper": ICDLoss.paper, "released": ICDLoss.released}
_PRESET_OVERRIDES = ("gram", "pyramid", "normalize", "temperature", "scales", "scale_weights")


def make_device(options: Options) -> torch.device:
    """The device of --device; --threads takes effect."""
    torch.set_num_threads(options.threads)
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA GPUs here"
        )
    return device


def make_icd(options: Options, device: torch.device) -> ICDLoss:
    """The iCD loss of the preset and the options beside it, before its weight in the objective."""
    overrides = {name: getattr(options, name) for name in _PRESET_OVERRIDES if getattr(options, name) is not None}
    try:
        backend = choose(options.backend, device.type).name
        return _PRESETS[options.preset](**overrides, backend=backend, weight=1.0)
    except BackendUnavailableError as error:
        raise UsageError(f"--backend: {error}") from error
    except ValueError as error:
        raise UsageError(f"iCD option: {error}") from error


def resolved(options: Options, icd: ICDLoss, device: torch.device) -> dict[str, Any]:
    """Every value that the numbers depend on, by the name of its option; numbers, strings and tuples only."""
    same = ("data", "train_images", "methods", "seeds", "seed", "epochs", "batch_size", "lr")
    teacher = ("teacher_epochs", "teacher_lr", "teacher_seed", "kd_weight", "kd_temperature")
    return {
        **{name: getattr(options, name) for name in (*same, *teacher)},
        **{name: getattr(icd.options, name) for name in _PRESET_OVERRIDES},
        "icd_weight": _icd_weight(options, icd),
        "backend": icd.backend,
        "device": str(device),
        "threads": options.threads,
    }


def _icd_weight(options: Options, icd: ICDLoss) -> float:
    """--icd-weight, or what brings the term to the size of the KD term."""
    if options.icd_weight is not None:
        return options.icd_weight
    if options.preset == "released":
        return ICDLoss.released().weight
    return 0.03 if icd.options.normalize == "none" else 1.0
