"""iCD as a distiller of mdistiller, which its own tools/train.py trains.

Copy this file beside mdistiller's tools/train.py, and add two lines to that script, below its imports:

    import icd_distiller
    icd_distiller.register()

Then `python tools/train.py --cfg icd.yaml`, with icd.yaml from this folder. On one GPU: `nn.DataParallel` of several
copies the networks at every step, which a tap refuses with a message.
"""

from __future__ import annotations

from typing import Any

import torch
from mdistiller.distillers import distiller_dict
from mdistiller.distillers._base import Distiller
from mdistiller.engine.cfg import CFG
from torch import Tensor, nn
from yacs.config import CfgNode

from icd_kernels import FeatureTap, make_objective


class ICD(Distiller):
    """SD-DKD with iCD, or any other method of `make_objective` that has no parameters of its own."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: Any) -> None:
        super().__init__(student, teacher)
        self.student_tap, self.teacher_tap = FeatureTap(student), FeatureTap(teacher)
        self.objective = make_objective(cfg.ICD.METHOD, num_classes=cfg.ICD.NUM_CLASSES)
        self.components: dict[str, Tensor] = {}

    def forward_train(self, image: Tensor, target: Tensor, epoch: int, **_: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits and the losses, which the trainer adds up: hence one entry, and the terms apart."""
        with torch.no_grad():
            teacher_out = self.teacher_tap(image)
        student_out = self.student_tap(image)
        out = self.objective(student_out, teacher_out, target, epoch=epoch)
        self.components = out.components
        return student_out.logits, {"loss_icd": out.total}


def register() -> None:
    """Makes "ICD" a DISTILLER.TYPE, with the options METHOD and NUM_CLASSES under ICD."""
    distiller_dict["ICD"] = ICD
    CFG.ICD = CfgNode({"METHOD": "icd-dkd", "NUM_CLASSES": 100})
