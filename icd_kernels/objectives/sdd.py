"""SDD: a row loss over every region's logits, the regions where the teacher contradicts itself counted double."""

from __future__ import annotations

import torch
from torch import Tensor

from icd_kernels.checks import check_logits, compute_dtype
from icd_kernels.objectives import released as released_code
from icd_kernels.objectives.options import check_number
from icd_kernels.objectives.rows import ROW_LOSSES, RowSettings
from icd_kernels.objectives.targets import check_target, reduced, target_class
from icd_kernels.options import REDUCTIONS, check_choice, check_temperature

BASES = tuple(ROW_LOSSES)


def sdd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    base: str = "kd",
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    complementary_weight: float = 2.0,
    reduction: str = "mean",
    released: bool = False,
) -> Tensor:
    """A distillation loss on local logits, mean over the regions (Scale Decoupled Distillation, arXiv:2403.13512).

    Every region's row loss is multiplied by `complementary_weight` where the teacher is right on the whole image and
    wrong in the region or the reverse. Region 0 is the whole image: scale 1 comes first, as in `region_logits` with
    scales (1, 2, 4). With one region, (B, K, 1), this is the plain loss on global logits.

    Args:
        student_logits: (B, K, N), any strides.
        teacher_logits: (B, K, N), a constant.
        target: (B,) int64 class indices, or (B, K) probabilities, of which the likeliest class is taken. KD reads it
            for the complementary regions alone.
        base: "kd", "dkd" or "nkd".
        temperature: T > 0 of the softened logits.
        alpha, beta: of "dkd", the weights of the true class and of the other classes.
        gamma: of "nkd", the weight of the other classes.
        complementary_weight: 1 counts all regions alike.
        reduction: "mean" over the B·N rows, "sum" over the images of their mean over N, or "none": (B,).
        released: the authors' formulas, faults included (docs/objectives.md).

    Tensors may be float64, float32, bfloat16 or float16; the math and the loss are float64 if one is, else float32.

    Returns:
        A scalar, or (B,) with reduction "none". NaN in gives NaN out, unless `released`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
    """
    check_choice("base", base, BASES)
    check_choice("reduction", reduction, REDUCTIONS)
    settings = make_row_settings(temperature, alpha, beta, gamma)
    complementary_weight = check_number("complementary_weight", complementary_weight)
    check_logits(student_logits, teacher_logits, scales=None)
    check_target(target, student_logits.shape[0], student_logits.shape[1])
    dtype = compute_dtype(student_logits, teacher_logits)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
        rows = sdd_rows(student, teacher, target_class(target), base, settings, complementary_weight, released)
        loss = reduced(rows, reduction)
        return released_code.without_nan(loss) if released else loss


def make_row_settings(temperature: float, alpha: float, beta: float, gamma: float) -> RowSettings:
    """The row losses' settings, checked."""
    return RowSettings(
        check_temperature(temperature),
        check_number("alpha", alpha),
        check_number("beta", beta),
        check_number("gamma", gamma),
    )


def sdd_rows(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    base: str,
    settings: RowSettings,
    complementary_weight: float,
    released: bool,
) -> Tensor:
    """Every region's loss, weighted, (B, N): logits (B, K, N) in the dtype of the math, class indices (B,)."""
    if released:
        rows = released_code.rows(base, student, teacher, target, settings)
    else:
        rows = ROW_LOSSES[base](student, teacher, target, settings)
    if student.shape[2] == 1 or complementary_weight == 1:
        return rows
    return rows * complementary(teacher, target).to(rows.dtype).mul_(complementary_weight - 1).add_(1)


def complementary(teacher: Tensor, target: Tensor) -> Tensor:
    """Where the teacher is right on the whole image (region 0) and wrong in the region, or the reverse: (B, N)."""
    is_right = teacher.argmax(1) == target[:, None]
    return is_right != is_right[:, :1]
