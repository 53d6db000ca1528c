"""Every method of the paper's table as one objective, and SDD's loss on local logits by itself."""

from icd_kernels.objectives.indexed import IndexedDataset
from icd_kernels.objectives.objective import Objective, ObjectiveOutput
from icd_kernels.objectives.registry import METHODS, make_objective
from icd_kernels.objectives.sdd import sdd_loss

__all__ = ["METHODS", "IndexedDataset", "Objective", "ObjectiveOutput", "make_objective", "sdd_loss"]
