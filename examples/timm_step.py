"""A training step with timm's models: NKD of every region, with iCD.

    pip install timm
    python examples/timm_step.py

Replace the models' names (`pretrained=True` for the teacher) and the random batch. `FeatureTap` refuses the models
whose logits are no function of the mean of a map, and says why.
"""

from __future__ import annotations

import timm
import torch

from icd_kernels import FeatureTap, make_objective

NUM_CLASSES = 10


def main() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet18", num_classes=NUM_CLASSES).requires_grad_(False).eval()
    student = timm.create_model("efficientnet_b0", num_classes=NUM_CLASSES).train()
    teacher_tap, student_tap = FeatureTap(teacher), FeatureTap(student)
    objective = make_objective("icd-nkd", num_classes=NUM_CLASSES)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for epoch in (1, 2):
        images, labels = torch.randn(4, 3, 64, 64), torch.randint(NUM_CLASSES, (4,))
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_out = teacher_tap(images)
        out = objective(student_tap(images), teacher_out, labels, epoch=epoch)
        out.total.backward()
        optimizer.step()
        terms = {"total": out.total, **out.components}
        print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
