"""The backends beside each other, best first, and the choice between them.

`"auto"` takes the first that can run the arguments' device; a named backend runs or raises: none falls back silently.
"""

from __future__ import annotations

import os
import warnings

import torch

from icd_kernels.backends import reference
from icd_kernels.backends.base import Backend, BackendUnavailableError
from icd_kernels.backends.cpp import CPP
from icd_kernels.backends.cuda import CUDA
from icd_kernels.backends.triton import TRITON

REFERENCE = Backend(
    name="reference",
    device_types=None,
    missing=None,
    icd_loss=reference.icd_loss,
    region_features=reference.region_features,
    region_logits=reference.region_logits,
    gram_kl=reference.gram_kl,
)

BACKENDS: tuple[Backend, ...] = (TRITON, CUDA, CPP, REFERENCE)

ENVIRONMENT_VARIABLE = "ICD_KERNELS_BACKEND"

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "Backend", "BackendUnavailableError", "available_backends", "choose"]


def available_backends() -> tuple[str, ...]:
    """Names of the backends usable on this machine, best first: installed, and with a device to run on."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return tuple(backend.name for backend in BACKENDS if any(map(backend.can_run, devices)))


def choose(name: str, device_type: str) -> Backend:
    """The backend called `name`, or with "auto" the best that can run tensors on `device_type`.

    "auto" means the environment variable ICD_KERNELS_BACKEND where that is set.

    Raises:
        TypeError: `name` is not a string.
        ValueError: no backend has that name, or the named one does not run on this device.
        BackendUnavailableError: the named backend is not usable here; the message says how to get it.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend must be a string, got {type(name).__name__}: {name!r}")
    source = "backend"
    if name == "auto":
        name, source = os.environ.get(ENVIRONMENT_VARIABLE, "auto"), f"environment variable {ENVIRONMENT_VARIABLE}"
    for backend in BACKENDS:
        if name == "auto" and device_type not in backend.only_by_name and backend.can_run(device_type):
            if backend is REFERENCE:
                _say_what_is_missing(device_type)
            return backend
        if backend.name == name:
            backend.can_run(device_type, raise_error=True)
            return backend
    known = ("auto", *(backend.name for backend in BACKENDS))
    raise ValueError(f"{source} must be one of {known}, got {name!r}")


_TOLD: set[str] = set()


def _say_what_is_missing(device_type: str) -> None:
    """Warns, once for a kind of device, that "auto" takes the reference where a compiled backend would run it."""
    if torch.compiler.is_compiling() or device_type in _TOLD:
        return
    _TOLD.add(device_type)
    reasons = [
        f"backend {backend.name!r} is not available: {backend.missing}"
        for backend in BACKENDS
        if backend.missing is not None
        and device_type in (backend.device_types or ())
        and device_type not in backend.only_by_name
    ]
    if reasons:
        warnings.warn(
            f"icd_kernels takes the plain PyTorch reference on {device_type!r}, which is slower. {'; '.join(reasons)}",
            stacklevel=4,
        )
