"""A training task of timm (`timm.task`) that distils with iCD: in timm's train.py it takes the place of its own task.

    pip install timm
    python examples/timm_task.py

Replace the models' names (`pretrained=True` for the teacher) and the random batch.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.task.classification import ClassificationTask
from timm.task.distillation import DistillationTeacher
from torch import Tensor, nn

from icd_kernels import FeatureTap, make_objective

NUM_CLASSES = 10


class ICDTask(ClassificationTask):
    """Any method of `make_objective` that has no parameters of its own, with `epoch` for those that ramp up.

    timm's `compile` and `prepare_distributed` wrap `trainable_module`; the student is tapped as it is then.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, method: str, num_classes: int, **more: Any) -> None:
        super().__init__(model, nn.CrossEntropyLoss(), **more)  # the objective has a cross-entropy of its own
        self.objective = make_objective(method, num_classes=num_classes).to(self.device)
        self.teacher = DistillationTeacher(teacher.requires_grad_(False), device=self.device)
        self.teacher_tap = FeatureTap(self.teacher.model)
        self.student_tap = FeatureTap(model)
        statistics = (getattr(model, "pretrained_cfg", None) or {}).get
        self.statistics = [torch.tensor(statistics(name, ())).view(1, -1, 1, 1) for name in ("mean", "std")]
        self.epoch = 1

    def train(self, mode: bool = True) -> ICDTask:
        super().train(mode)
        self.teacher.eval()
        return self

    def compile(self, *arguments: Any, **more: Any) -> nn.Module:
        compiled = super().compile(*arguments, **more)
        self.student_tap = FeatureTap(compiled)
        return compiled

    def prepare_distributed(self, *arguments: Any, **more: Any) -> ICDTask:
        super().prepare_distributed(*arguments, **more)
        self.student_tap = FeatureTap(self.trainable_module)
        return self

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        mean, std = (values.to(input) for values in self.statistics)
        with torch.no_grad():
            images = self.teacher.normalize_input(input, mean, std) if mean.numel() else input
            teacher_out = self.teacher_tap(images)
        student_out = self.student_tap(input)
        out = self.objective(student_out, teacher_out, target, epoch=self.epoch)
        return {"loss": out.total, "output": student_out.logits, **out.components}


def main() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet18", num_classes=NUM_CLASSES)
    student = timm.create_model("convnext_atto", num_classes=NUM_CLASSES)
    task = ICDTask(student, teacher, "icd-dkd", num_classes=NUM_CLASSES).train()
    optimizer = torch.optim.AdamW(task.get_trainable_module().parameters(), lr=1e-3)
    for task.epoch in (1, 2):
        images, labels = torch.randn(4, 3, 64, 64), torch.randint(NUM_CLASSES, (4,))
        optimizer.zero_grad()
        result = task(images, labels)
        result["loss"].backward()
        optimizer.step()
        terms = {"total": result["loss"], **{name: result[name] for name in result if name not in ("loss", "output")}}
        print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
