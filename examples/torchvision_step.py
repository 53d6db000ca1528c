"""A training step with torchvision's models: knowledge distillation, and iCD added to it.

    pip install torchvision
    python examples/torchvision_step.py

Replace the two models (load the teacher's weights) and the random batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models import resnet18, resnet34

from icd_kernels import FeatureTap, ICDLoss, make_objective
from icd_kernels.objectives import Objective

NUM_CLASSES = 10


def step_loss(
    student: FeatureTap, teacher: FeatureTap, objective: Objective, icd: ICDLoss, images: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to call backward on, and its terms."""
    with torch.no_grad():
        teacher_out = teacher(images)
    student_out = student(images)
    out = objective(student_out, teacher_out, labels)
    icd_term = icd(student_out.features, student_out.head, teacher_out.features, teacher_out.head)
    return out.total + icd_term, {**out.components, "icd": icd_term.detach()}


def main() -> None:
    torch.manual_seed(0)
    teacher = resnet34(num_classes=NUM_CLASSES).requires_grad_(False).eval()
    student = resnet18(num_classes=NUM_CLASSES).train()
    teacher_tap, student_tap = FeatureTap(teacher), FeatureTap(student)
    objective, icd = make_objective("kd", num_classes=NUM_CLASSES), ICDLoss.released()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        images, labels = torch.randn(4, 3, 64, 64), torch.randint(NUM_CLASSES, (4,))
        optimizer.zero_grad()
        loss, terms = step_loss(student_tap, teacher_tap, objective, icd, images, labels)
        loss.backward()
        optimizer.step()
        print(f"total={loss.item():.6g}", *(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
