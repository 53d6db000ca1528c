"""A training loop of Accelerate, with gradient accumulation, that distils with iCD.

    pip install accelerate torchvision
    python examples/accelerate_loop.py          # or: accelerate launch examples/accelerate_loop.py

Replace the two models (load the teacher's weights) and the data.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18, resnet34

from icd_kernels import FeatureTap, make_objective

NUM_CLASSES = 10


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    student, teacher = resnet18(num_classes=NUM_CLASSES).train(), resnet34(num_classes=NUM_CLASSES)
    teacher.requires_grad_(False).eval().to(accelerator.device)  # not prepared: it has no gradients to average
    objective = make_objective("icd-kd", num_classes=NUM_CLASSES).to(accelerator.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    data = TensorDataset(torch.randn(16, 3, 64, 64), torch.randint(NUM_CLASSES, (16,)))
    student, optimizer, loader = accelerator.prepare(student, optimizer, DataLoader(data, batch_size=4))
    student_tap, teacher_tap = FeatureTap(student), FeatureTap(teacher)  # the student as `prepare` has wrapped it

    for epoch in (1,):
        for images, labels in loader:
            with accelerator.accumulate(student):
                with accelerator.autocast():
                    with torch.no_grad():
                        teacher_out = teacher_tap(images)
                    out = objective(student_tap(images), teacher_out, labels, epoch=epoch)
                accelerator.backward(out.total)
                optimizer.step()
                optimizer.zero_grad()
            terms = {"total": out.total, **out.components}
            accelerator.print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
