"""A stand-in for mdistiller where it is not installed: the modules that its tools/train.py and a distiller import.

It follows mdistiller's published interface: `Distiller`, `distiller_dict`, `CFG`, and the steps of its trainer.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import torch
from torch import Tensor, nn


class Distiller(nn.Module):
    """The base of every method: the teacher stays in eval mode, and calls go by keywords."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def train(self, mode: bool = True) -> Distiller:
        self.training = mode
        for module in self.children():
            module.train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.student.named_parameters()]

    def get_extra_parameters(self) -> int:
        return 0

    def forward(self, **given: Any) -> Any:
        if self.training:
            return self.forward_train(**given)
        return self.student(given["image"])[0]

    def forward_train(self, **given: Any) -> Any:
        raise NotImplementedError


def installed(config: types.ModuleType) -> dict[str, types.ModuleType]:
    """The stand-in's modules by their names.

    Args:
        config: yacs.config, which mdistiller's CFG is made of.
    """
    names = ("mdistiller", "mdistiller.distillers", "mdistiller.distillers._base", "mdistiller.engine")
    modules = {name: types.ModuleType(name) for name in (*names, "mdistiller.engine.cfg")}
    modules["mdistiller.distillers._base"].Distiller = Distiller  # type: ignore[attr-defined]
    modules["mdistiller.distillers"].distiller_dict = {}  # type: ignore[attr-defined]
    solver = {"LR": 0.05, "MOMENTUM": 0.9, "WEIGHT_DECAY": 5e-4, "EPOCHS": 2}
    tree = {"DISTILLER": {"TYPE": "NONE", "TEACHER": "", "STUDENT": ""}, "SOLVER": solver}
    modules["mdistiller.engine.cfg"].CFG = config.CfgNode(tree)  # type: ignore[attr-defined]
    return modules


def trained(student: nn.Module, teacher: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, float]]:
    """What tools/train.py does once the method is in the configuration, on the CPU; the losses of every step."""
    cfg = sys.modules["mdistiller.engine.cfg"].CFG
    methods = sys.modules["mdistiller.distillers"].distiller_dict
    distiller = nn.DataParallel(methods[cfg.DISTILLER.TYPE](student, teacher, cfg))
    assert distiller.module.get_extra_parameters() == 0
    optimizer = torch.optim.SGD(
        distiller.module.get_learnable_parameters(),
        lr=cfg.SOLVER.LR,
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    losses = []
    for epoch in range(1, cfg.SOLVER.EPOCHS + 1):
        distiller.train()
        for image, target in batches:
            optimizer.zero_grad()
            logits, found = distiller(image=image, target=target, epoch=epoch)
            sum(loss.mean() for loss in found.values()).backward()
            optimizer.step()
            losses.append({name: loss.item() for name, loss in found.items()})
            assert logits.shape == (len(image), 100)
        distiller.eval()
        with torch.no_grad():
            assert distiller(image=batches[0][0]).shape == (len(batches[0][0]), 100)
    return losses
