"""Models as their authors wrote them, read for distillation: their classifier, and the map that is pooled before it."""

from icd_kernels.tap.feature_tap import FeatureTap
from icd_kernels.tap.search import TapError

__all__ = ["FeatureTap", "TapError"]
