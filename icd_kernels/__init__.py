"""iCD (implicit Clustering Distillation) as a fast, exact loss for PyTorch."""

from icd_kernels._version import __version__
from icd_kernels.backends import BackendUnavailableError, available_backends
from icd_kernels.functional import gram_kl, icd_loss, region_logits
from icd_kernels.module import ICDLoss

__all__ = [
    "BackendUnavailableError",
    "ICDLoss",
    "__version__",
    "available_backends",
    "gram_kl",
    "icd_loss",
    "region_logits",
]
