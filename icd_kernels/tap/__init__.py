"""Models as their authors wrote them, read for distillation: the map that is pooled, and the head of its mean."""

from icd_kernels.tap.errors import TapError
from icd_kernels.tap.feature_tap import FeatureTap

__all__ = ["FeatureTap", "TapError"]
