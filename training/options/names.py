"""Names that options take: methods, data sets, networks, presets."""

from __future__ import annotations

NO_DISTILLATION = "none"
METHODS = (
    NO_DISTILLATION,
    "sp", "crd", "ldrld",
    "kd", "sd-kd", "icd-kd",
    "dkd", "sd-dkd", "icd-dkd",
    "nkd", "sd-nkd", "icd-nkd",
)  # fmt: skip
"""The rows of the paper's table after its student; those of `icd_kernels.objectives`, which needs PyTorch."""
PACKAGED_DATA = ("mnist5k", "digits")
DATA = (*PACKAGED_DATA, "cifar100", "cub200")
FOLDER_PREFIX = "folder:"
SMALL = "small"
NETWORKS = (
    SMALL, "narrow", "deep",
    "resnet32x4", "resnet50", "wrn-40-2", "vgg13", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2",
)  # fmt: skip
LIBRARIES = ("torchvision", "timm")
PRESETS = ("balanced", "paper", "released", "corrected")
