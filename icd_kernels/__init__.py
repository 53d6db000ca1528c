"""iCD (implicit Clustering Distillation) as a fast, exact loss for PyTorch.

Names are loaded when they are first asked for: the options' choices can be read without PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from icd_kernels._version import __version__

if TYPE_CHECKING:
    from icd_kernels.backends import BackendUnavailableError, available_backends
    from icd_kernels.functional import gram_kl, icd_loss, local_logits, region_features, region_logits
    from icd_kernels.module import ICDLoss, class_form_weight
    from icd_kernels.network import NetworkOutput
    from icd_kernels.objectives import make_objective, sdd_loss
    from icd_kernels.tap import FeatureTap

_MODULES = {
    "BackendUnavailableError": "backends",
    "FeatureTap": "tap",
    "ICDLoss": "module",
    "NetworkOutput": "network",
    "available_backends": "backends",
    "class_form_weight": "module",
    "gram_kl": "functional",
    "icd_loss": "functional",
    "local_logits": "functional",
    "make_objective": "objectives",
    "region_features": "functional",
    "region_logits": "functional",
    "sdd_loss": "objectives",
}

__all__ = [
    "BackendUnavailableError",
    "FeatureTap",
    "ICDLoss",
    "NetworkOutput",
    "__version__",
    "available_backends",
    "class_form_weight",
    "gram_kl",
    "icd_loss",
    "local_logits",
    "make_objective",
    "region_features",
    "region_logits",
    "sdd_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
