"""A whole training objective: ce_weight·CE + ramp(epoch)·base_weight·base + γ·iCD."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icd_kernels.network import NetworkOutput
from icd_kernels.objectives.batch import Batch, Needs, View, as_constant, check_masks, make_view
from icd_kernels.objectives.classes import ClassPairs, masked_classes, without_masked
from icd_kernels.objectives.common import CommonOptions, check_number
from icd_kernels.objectives.icd import ICDTerm
from icd_kernels.objectives.regions import Regions
from icd_kernels.objectives.targets import (
    check_sample_weight,
    check_target,
    check_target_values,
    cross_entropy,
    reduced,
    target_class,
)
from icd_kernels.objectives.values import is_on_host, is_readable


class ObjectiveOutput(NamedTuple):
    """What an objective says of a batch."""

    total: Tensor
    """What to call backward on: a scalar, or (B,) with reduction "none"."""
    components: dict[str, Tensor]
    """"ce" where there is a target, the base's name and "icd" where there is one: each before its weight, reduced as
    the total, detached."""


class Parts(NamedTuple):
    """What an objective is made of."""

    common: CommonOptions
    base_name: str
    base: Any
    """A term: a module from a batch and a reduction to a loss. `reads_target`: whether the true class changes it."""
    needs: Needs = Needs()
    icd: ICDTerm | None = None
    icd_weight: float = 0.0
    regions: Regions | None = None
    """Where a term reads local logits."""
    is_fused: bool = False
    """Whether iCD alone reads them, and makes them itself from features and head."""


class Objective(nn.Module):
    """A method of the paper's table; :func:`icd_kernels.make_objective` builds it.

    A module because CRD has embedding heads to train and a memory to keep: give `parameters()` to the optimizer and
    `state_dict()` to the checkpoint, whatever the method.
    """

    def __init__(self, parts: Parts, settings: dict[str, Any]) -> None:
        super().__init__()
        self.common = parts.common
        self.base_name = parts.base_name
        self.base = parts.base
        self.icd = parts.icd
        self.icd_weight = parts.icd_weight
        self.regions = parts.regions
        self.is_fused = parts.is_fused
        self.needs = parts.needs
        student_classes, teacher_classes = settings.get("student_classes"), settings.get("teacher_classes")
        self.pairs = ClassPairs(settings["num_classes"], student_classes, teacher_classes)
        self._settings = settings
        self._has_seen_a_batch = False

    def settings(self) -> dict[str, Any]:
        """Every value that decides the numbers, weights and iCD's γ (`icd_weight`) included: plain, for records."""
        return dict(self._settings)

    def forward(
        self,
        student: NetworkOutput,
        teacher: NetworkOutput,
        target: Tensor | None = None,
        *,
        epoch: float | None = None,
        indices: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The objective of a batch.

        Args:
            student: logits (B, K), and where the method reads them features (B, C, H, W) and head, or local logits
                (B, K, N). A logit of -inf in either network takes that class out of the image's row.
            teacher: likewise, a constant.
            target: (B,) int64 class indices, -100 for an image without a label, or (B, K) probabilities; of the
                student's classes. None where no image has a label: `ce_weight` must then be 0. Where a base needs a
                class and an image has none, or none that is paired, the teacher's likeliest class stands in.
            epoch: a number counted from 1 as in the released recipes: the base's ramp is min(epoch / ramp_epochs, 1).
                Required where the method ramps up (`ramp_epochs` above 0) or its temperature is a function of it.
            indices: (B,) int64 positions of the images in the data set, for CRD.
            sample_weight: (B,): every term of image b is multiplied by its weight before the reduction.

        "mean" divides by B in every term, whatever the weights and however many images have no label.

        Values are checked too: in every batch where they lie in the host's memory, elsewhere in the first alone, which
        waits for the device.

        Raises:
            TypeError, ValueError: an argument is wrong or the method needs one that is missing; the message names it.
        """
        student_view, teacher_view = self._views(student, teacher)
        self._check_target(target, student_view)
        check_sample_weight(sample_weight, student_view.logits.shape[0])
        with torch.autocast(student_view.logits.device.type, enabled=False):
            batch = self._batch(student_view, teacher_view, target, epoch, indices)
            self._check_values(batch, target)
            terms = self._terms(batch, target, sample_weight)
            total = self._base_weight(epoch) * terms[self.base_name]
            if "ce" in terms:
                total = self.common.ce_weight * terms["ce"] + total
            if self.icd is not None:
                total = total + self.icd_weight * terms["icd"]
        return ObjectiveOutput(total, {name: term.detach() for name, term in terms.items()})

    def _views(self, student: NetworkOutput, teacher: NetworkOutput) -> tuple[View, View]:
        student_view, teacher_view = (
            make_view(output, name, self.pairs, self.needs)
            for name, output in (("student", student), ("teacher", teacher))
        )
        if teacher_view.logits.shape != student_view.logits.shape:
            raise ValueError(
                f"teacher.logits must have the batch size of student.logits, {student_view.logits.shape[0]}, "
                f"got shape {tuple(teacher_view.logits.shape)}"
            )
        return self._with_regions(student_view, as_constant(teacher_view))

    def _with_regions(self, student: View, teacher: View) -> tuple[View, View]:
        """The views with their local logits, one pooling and one projection for each network."""
        views = (student, teacher)
        can_fuse = all(view.regions is None and isinstance(view.head, tuple) for view in views)
        if self.regions is None or (self.is_fused and can_fuse):
            return student, teacher
        student = student._replace(regions=self.regions(student, "student", self.pairs))
        with torch.no_grad():
            return student, teacher._replace(regions=self.regions(teacher, "teacher", self.pairs))

    def _check_target(self, target: Tensor | None, student: View) -> None:
        if target is not None:
            check_target(target, *student.every_logit.shape)
        elif self.common.ce_weight > 0:
            raise ValueError(
                f"target must be given where ce_weight is {self.common.ce_weight:g}: without labels pass ce_weight=0, "
                "got None"
            )

    def _batch(
        self, student: View, teacher: View, target: Tensor | None, epoch: float | None, indices: Tensor | None
    ) -> Batch:
        masked = masked_classes(student.logits, teacher.logits)
        classes = student.logits.new_zeros(student.logits.shape[0], dtype=torch.int64)
        if getattr(self.base, "reads_target", False):
            hard = target.argmax(1) if target is not None and target.ndim == 2 else target
            if hard is not None:
                hard = self.pairs.pair_of(hard, student.every_logit.shape[1])
            classes = target_class(hard, without_masked(teacher.logits, masked))
        return Batch(student, teacher, classes, indices, epoch, masked)

    def _check_values(self, batch: Batch, target: Tensor | None) -> None:
        """Checks what only values tell: where they are at hand, and once where they are not."""
        logits = batch.student.logits
        if not is_on_host(logits) and (self._has_seen_a_batch or not is_readable()):
            return
        self._has_seen_a_batch = True
        if target is not None:
            check_target_values(target, batch.student.every_logit.shape[1])
        check_masks(batch, self.icd is not None)
        check = getattr(self.base, "check_values", None)
        if check is not None:
            check()

    def _terms(self, batch: Batch, target: Tensor | None, sample_weight: Tensor | None) -> dict[str, Tensor]:
        reduction = self.common.reduction
        each = reduction if sample_weight is None else "none"
        terms = {}
        if target is not None:
            per_image = cross_entropy(batch.student.every_logit, target, self.common.label_smoothing)
            terms["ce"] = reduced(per_image, each)
        terms[self.base_name] = self.base(batch, each)
        if self.icd is not None:
            terms["icd"] = self.icd(batch, each)
        if sample_weight is None:
            return terms
        return {name: reduced(sample_weight.to(term.dtype) * term, reduction) for name, term in terms.items()}

    def _base_weight(self, epoch: float | None) -> float:
        ramp_epochs = self.common.ramp_epochs
        if epoch is None:
            if ramp_epochs:
                raise TypeError(
                    f"epoch must be given: method {self._settings['method']!r} ramps up over {ramp_epochs:g} epochs, "
                    "counted from 1 (ramp_epochs=0 turns that off)"
                )
            epoch = 0
        epoch = check_number("epoch", epoch)
        ramp = min(epoch / ramp_epochs, 1.0) if ramp_epochs else 1.0
        return self.common.base_weight * ramp

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
