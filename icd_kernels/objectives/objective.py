"""A whole training objective: ce_weight·CE + ramp(epoch)·base_weight·base + γ·iCD."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd_kernels.network import NetworkOutput
from icd_kernels.objectives.batch import Batch, Needs, View, as_constant, make_view
from icd_kernels.objectives.options import check_number
from icd_kernels.objectives.targets import check_sample_weight, check_target, reduced, target_class
from icd_kernels.objectives.terms import ICDTerm, Regions


class ObjectiveOutput(NamedTuple):
    """What an objective says of a batch."""

    total: Tensor
    """What to call backward on: a scalar, or (B,) with reduction "none"."""
    components: dict[str, Tensor]
    """"ce", the base's name and "icd" where there is one: each before its weight, reduced as the total, detached."""


class Parts(NamedTuple):
    """What an objective is made of."""

    base_name: str
    base: nn.Module
    icd: ICDTerm | None = None
    regions: Regions | None = None
    """Where a term reads local logits."""
    needs: Needs = Needs()


class Objective(nn.Module):
    """A method of the paper's table; :func:`icd_kernels.make_objective` builds it.

    A module because CRD has embedding heads to train and a memory to keep: give `parameters()` to the optimizer and
    `state_dict()` to the checkpoint, whatever the method.
    """

    def __init__(self, parts: Parts, settings: dict[str, Any]) -> None:
        super().__init__()
        self.base_name = parts.base_name
        self.base = parts.base
        self.icd = parts.icd
        self.regions = parts.regions
        self.needs = parts.needs
        self._settings = settings

    def settings(self) -> dict[str, Any]:
        """Every value that decides the numbers, weights and iCD's γ (`icd_weight`) included: plain, for records."""
        return dict(self._settings)

    def forward(
        self,
        student: NetworkOutput,
        teacher: NetworkOutput,
        target: Tensor,
        *,
        epoch: float | None = None,
        indices: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The objective of a batch.

        Args:
            student: logits (B, K), and where the method reads them features (B, C, H, W) and head.
            teacher: likewise, a constant.
            target: (B,) int64 class indices, or (B, K) probabilities.
            epoch: a number counted from 1 as in the released recipes: the base's ramp is min(epoch / ramp_epochs, 1).
                Required where the method ramps up (`ramp_epochs` above 0); unused elsewhere.
            indices: (B,) int64 positions of the images in the data set, for CRD.
            sample_weight: (B,): every term of image b is multiplied by its weight before the reduction, which divides
                by B and not by the sum of the weights.

        Raises:
            TypeError, ValueError: an argument is wrong or the method needs one that is missing; the message names it.
        """
        student_view, teacher_view = self._views(student, teacher)
        check_target(target, *student_view.logits.shape)
        check_sample_weight(sample_weight, student_view.logits.shape[0])
        reduction = self._settings["reduction"]
        with torch.autocast(student_view.logits.device.type, enabled=False):
            batch = Batch(*self._with_regions(student_view, teacher_view), target_class(target), indices)
            terms = self._terms(batch, target, reduction if sample_weight is None else "none")
            if sample_weight is not None:
                terms = {name: reduced(sample_weight.to(term.dtype) * term, reduction) for name, term in terms.items()}
            total = self._settings["ce_weight"] * terms["ce"] + self._base_weight(epoch) * terms[self.base_name]
            if self.icd is not None:
                total = total + self._settings["icd_weight"] * terms["icd"]
        return ObjectiveOutput(total, {name: term.detach() for name, term in terms.items()})

    def _terms(self, batch: Batch, target: Tensor, reduction: str) -> dict[str, Tensor]:
        logits, smoothing = batch.student.logits, self._settings["label_smoothing"]
        if target.is_floating_point():
            target = target.to(logits.dtype)
        terms = {
            "ce": F.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing),
            self.base_name: self.base(batch, reduction),
        }
        if self.icd is not None:
            terms["icd"] = self.icd(batch, reduction)
        return terms

    def _views(self, student: NetworkOutput, teacher: NetworkOutput) -> tuple[View, View]:
        student_view, teacher_view = (
            make_view(output, name, self._settings["num_classes"], self.needs)
            for name, output in (("student", student), ("teacher", teacher))
        )
        if teacher_view.logits.shape != student_view.logits.shape:
            raise ValueError(
                f"teacher.logits must have the batch size of student.logits, {student_view.logits.shape[0]}, "
                f"got shape {tuple(teacher_view.logits.shape)}"
            )
        return student_view, as_constant(teacher_view)

    def _with_regions(self, student: View, teacher: View) -> tuple[View, View]:
        """The views with their local logits, one pooling and one projection for each network."""
        if self.regions is None:
            return student, teacher
        return student._replace(regions=self.regions(student)), teacher._replace(regions=self.regions(teacher))

    def _base_weight(self, epoch: float | None) -> float:
        ramp_epochs = self._settings["ramp_epochs"]
        if epoch is None:
            if ramp_epochs:
                raise TypeError(
                    f"epoch must be given: method {self._settings['method']!r} ramps up over {ramp_epochs:g} epochs, "
                    "counted from 1 (ramp_epochs=0 turns that off)"
                )
            epoch = 0
        epoch = check_number("epoch", epoch)
        ramp = min(epoch / ramp_epochs, 1.0) if ramp_epochs else 1.0
        return self._settings["base_weight"] * ramp

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
