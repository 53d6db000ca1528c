"""SDD: a row loss over every region's logits, the regions where the teacher contradicts itself counted double."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from icd_kernels.backends import choose
from icd_kernels.checks import check_logits, compute_dtype
from icd_kernels.objectives import released as released_code
from icd_kernels.objectives.batch import Batch
from icd_kernels.objectives.classes import masked_classes, without_masked
from icd_kernels.objectives.common import check_flag, check_number, set_checked
from icd_kernels.objectives.dkd import DKD
from icd_kernels.objectives.kd import KD
from icd_kernels.objectives.nkd import NKD
from icd_kernels.objectives.row_method import RowMethod
from icd_kernels.objectives.rows import standardized
from icd_kernels.objectives.targets import check_target, check_target_values, reduced, target_class
from icd_kernels.objectives.temperature import CurrentTemperature
from icd_kernels.objectives.values import is_on_host
from icd_kernels.options import REDUCTIONS, check_choice

ROW_METHODS: dict[str, RowMethod] = {method.name: method for method in (KD, DKD, NKD)}
"""Every method of logit rows: the bases of SD-* and iCD."""


@dataclasses.dataclass(frozen=True)
class ComplementaryOptions:
    """Of SD-* and iCD over it."""

    complementary_weight: float = 2.0
    """What a region counts where the teacher is right on the whole image and wrong in the region, or the reverse."""

    def __post_init__(self) -> None:
        set_checked(self, complementary_weight=check_number("complementary_weight", self.complementary_weight))


class RowTerm(nn.Module):
    """A method of logit rows, on the networks' logits or on every region's (SD-*)."""

    def __init__(
        self, method: RowMethod, options: Any, *, complementary_weight: float | None, released: bool, backend: str
    ) -> None:
        """`complementary_weight`: of local logits; None is on global ones."""
        super().__init__()
        self.method = method
        self.temperature = CurrentTemperature(options.temperature)
        self.options = options
        self.complementary_weight = complementary_weight
        self.released = released
        self.backend = backend

    @property
    def reads_target(self) -> bool:
        """Whether the true class changes the loss."""
        return self.method.reads_target or self.complementary_weight is not None

    def check_values(self) -> None:
        """Raises ValueError where a learnt temperature is not above 0; waits for its device."""
        self.temperature.check()

    def forward(self, batch: Batch, reduction: str) -> Tensor:
        views, masked = (batch.student, batch.teacher), batch.masked
        if self.complementary_weight is None:
            student, teacher = (view.logits[:, :, None] for view in views)
        else:
            student, teacher = (view.regions for view in views)
        if masked is not None:
            masked = masked[:, :, None].expand_as(student)
        options = self.options
        if not self.temperature.is_fixed:
            options = dataclasses.replace(options, temperature=self.temperature(batch.epoch))
        rows = weighted_rows(
            self.method, student, teacher, batch.target_class, options, masked, self.complementary_weight or 1.0,
            self.released, self.backend,
        )  # fmt: skip
        loss = reduced(rows, reduction)
        return released_code.without_nan(loss) if self.released else loss


def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    base: str = "kd",
    temperature: float | Tensor = 4.0,
    alpha: float = 1.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    standardize: bool = False,
    complementary_weight: float = 2.0,
    reduction: str = "mean",
    released: bool = False,
    backend: str = "auto",
) -> Tensor:
    """A distillation loss on local logits, mean over the regions (Scale Decoupled Distillation, arXiv:2403.13512).

    Every region's row loss is multiplied by `complementary_weight` where the teacher is right on the whole image and
    wrong in the region or the reverse. Region 0 is the whole image: scale 1 comes first, as in `region_logits` with
    scales (1, 2, 4). With one region, (B, K, 1), this is the plain loss on global logits.

    Args:
        student_logits: (B, K, N), any strides. A logit of -inf, in either network, takes the class out of that row.
        teacher_logits: (B, K, N), a constant.
        target: (B,) int64 class indices, -100 for an image without a label, or (B, K) probabilities, of which the
            likeliest class is taken. KD reads it for the complementary regions alone. Where there is no label, or no
            target at all, the teacher's likeliest class on the whole image stands in.
        base: "kd", "dkd" or "nkd".
        temperature: T > 0 of the softened logits: a number, or a tensor of shape () that may be learnt.
        alpha, beta: of "dkd", the weights of the true class and of the other classes.
        gamma: of "nkd", the weight of the other classes.
        standardize: of "kd" and "dkd", whether logits are z-scored over the classes first (arXiv:2403.01427).
        complementary_weight: 1 counts all regions alike.
        reduction: "mean" over the B·N rows, "sum" over the images of their mean over N, or "none": (B,).
        released: the authors' formulas, faults included (docs/objectives.md).
        backend: as for `icd_loss`; "cpp" has a fused operator, the others take PyTorch's operations.

    Tensors may be float64, float32, bfloat16 or float16; the math and the loss are float64 if one is, else float32.

    Returns:
        A scalar, or (B,) with reduction "none". NaN in gives NaN out, unless `released`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
    """
    method = ROW_METHODS[check_choice("base", base, tuple(ROW_METHODS))]
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("released", released)
    given = {
        "temperature": temperature, "alpha": alpha, "beta": beta, "gamma": gamma, "standardize": standardize
    }  # fmt: skip
    options = dataclasses.replace(method.options, **_of(method.options, given))
    if standardize and "standardize" not in _of(method.options, given):
        raise ValueError(f"standardize is of 'kd' and 'dkd', got base {base!r}")
    complementary_weight = ComplementaryOptions(complementary_weight).complementary_weight
    check_logits(student_logits, teacher_logits, scales=None)
    if target is not None:
        check_target(target, student_logits.shape[0], student_logits.shape[1])
        if is_on_host(target):
            check_target_values(target, student_logits.shape[1])
    dtype = compute_dtype(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
        whole = masked_classes(student[:, :, 0], teacher[:, :, 0])
        classes = target_class(target, without_masked(teacher[:, :, 0], whole))
        # The fused operator sees by itself which classes are masked.
        is_fused = not standardize and _fused(student, options, released, backend) is not None
        masked = None if is_fused else masked_classes(student, teacher)
        rows = weighted_rows(
            method, student, teacher, classes, options, masked, complementary_weight, released, backend
        )
        loss = reduced(rows, reduction)
        return released_code.without_nan(loss) if released else loss


def _of(options: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Those of the given values that are fields of `options`."""
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in given.items() if name in names}


def weighted_rows(
    method: RowMethod,
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    options: Any,
    masked: Tensor | None,
    complementary_weight: float,
    released: bool,
    backend: str,
) -> Tensor:
    """Every region's loss, weighted, (B, N): logits (B, K, N), where classes are masked, class indices (B,)."""
    dtype = compute_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.to(dtype)
    if getattr(options, "standardize", False):
        student, teacher = standardized(student, masked), standardized(teacher, masked)
    student, teacher = without_masked(student, masked), without_masked(teacher, masked)
    fused = _fused(student, options, released, backend)
    if fused is not None:
        return fused(student, teacher, target, method.factors(options), options.temperature, complementary_weight)
    if not released:
        rows = method.rows(student, teacher, target, options)
    else:
        rows = released_code.rows_without_nan(method.released_rows or method.rows, student, teacher, target, options)
    if student.shape[2] == 1 or complementary_weight == 1:
        return rows
    return rows * complementary(teacher, target).to(rows.dtype).mul_(complementary_weight - 1).add_(1)


def _fused(logits: Tensor, options: Any, released: bool, backend: str) -> Callable[..., Tensor] | None:
    """The backend's operator where it has one that can do this."""
    is_possible = not released and isinstance(options.temperature, float)
    return choose(backend, logits.device.type).row_losses if is_possible else None


def complementary(teacher: Tensor, target: Tensor) -> Tensor:
    """Where the teacher is right on the whole image (region 0) and wrong in the region, or the reverse: (B, N)."""
    is_right = teacher.argmax(1) == target[:, None]
    return is_right != is_right[:, :1]
