"""What the Gram stage works on: pieces of one allocation, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from icd_kernels.backends.triton.plan_parts import GramPlan
from icd_kernels.backends.triton.structs import Work


def work_of(
    plan: GramPlan,
    pieces: Sequence[Tensor],
    nodes: Tensor,
    loss: Tensor,
    gradient: Tensor | None,
    raw: Tensor | None,
    upstream: Tensor | None,
    classes: int,
    pitch: int,
) -> Work:
    """The kernel's view of `pieces` (z of both networks, divisors, rows, losses of units and images, dl/dz of all
    regions where it is folded), and of what to write: the loss, dl/dz and both networks' logits before normalisation.

    What is not touched is some piece of the workspace.
    """
    z_student, z_teacher, divisor, rows, unit_loss, image_loss, all_cells = pieces
    folds = plan.form.FINEST > 0
    out = z_student if gradient is None else gradient
    return Work(
        p_student=z_student,
        p_teacher=z_teacher,
        p_student_raw=None if raw is None else raw[0],
        p_teacher_raw=None if raw is None else raw[1],
        p_divisor=divisor,
        p_rows=z_student if gradient is None else rows,
        p_nodes=nodes if plan.nodes_size else None,
        p_unit_loss=unit_loss,
        p_image_loss=image_loss if loss.ndim == 0 else loss,
        p_loss=loss,
        p_gradient=all_cells if folds and gradient is not None else out,
        p_saved=out if folds else None,
        p_upstream=upstream,
        stride_upstream=0 if upstream is None else upstream.stride(0),
        classes=classes,
        pitch=pitch,
    )
