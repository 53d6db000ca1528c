"""The operator namespace of this backend: the schemas of icd_kernels/operators.py, implemented by the launchers.

The launchers, and Triton with them, are imported when an operator first runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from icd_kernels import autograd
from icd_kernels.backends.triton.structs import PITCH
from icd_kernels.operators import SCHEMAS, register_fakes

OPERATORS = "icd_kernels_triton"

_MODULES = {
    "icd_loss": "icd_loss",
    "icd_loss_backward": "backward",
    "region_features": "region_features",
    "region_features_backward": "region_features",
    "region_logits": "region_logits",
    "region_logits_backward": "backward",
    "gram_kl": "gram_kl",
    "gram_kl_backward": "gram_kl",
}


def interprets() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them, as it decides when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "y", "yes", "true", "on")


def register() -> torch.library.Library:
    """Defines the operators. The library keeps them registered for as long as it lives."""
    library = torch.library.Library(OPERATORS, "DEF")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CUDA", "CPU") if interprets() else ("CUDA",):
        implement(library, key)
    register_fakes(OPERATORS, PITCH)
    return library


def implement(library: torch.library.Library, key: str) -> None:
    """Has the launchers run the operators on tensors of that dispatch key."""
    for name, function in vars(_LAUNCHERS).items():
        library.impl(name, function, key)


def _deferred(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] | None = None

    def run(*args: Any) -> Any:
        nonlocal function
        if function is None:
            function = getattr(import_module(f"icd_kernels.backends.triton.{module}"), name)
        return function(*args)

    return run


_LAUNCHERS = SimpleNamespace(**{name: _deferred(module, name) for name, module in _MODULES.items()})
autograd.PLAIN[OPERATORS] = _LAUNCHERS
