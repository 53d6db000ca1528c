"""iCD (implicit Clustering Distillation) as a fast, exact loss for PyTorch."""

from icd_kernels._version import __version__
from icd_kernels.backends import BackendUnavailableError, available_backends
from icd_kernels.functional import gram_kl, icd_loss, local_logits, region_features, region_logits
from icd_kernels.module import ICDLoss, class_form_weight
from icd_kernels.network import NetworkOutput
from icd_kernels.objectives import make_objective, sdd_loss
from icd_kernels.tap import FeatureTap

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
