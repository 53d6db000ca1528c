"""iCD as a distiller for code in the style of mdistiller, whose models return (logits, {"feats": [...]}).

    python examples/mdistiller_style.py

Replace `SmallNet` by your models and the random batch by yours. In mdistiller derive `ICD` from its `Distiller`, and
name it in its `distiller_dict`. `FeatureTap` finds the map that is pooled: not of every model the last of "feats".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icd_kernels import FeatureTap, make_objective


class SmallNet(nn.Module):
    """Two convolutions, the mean of the map, one linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        first = self.layer1(images)
        last = self.layer2(first)
        return self.fc(last.mean((2, 3))), {"feats": [first, last]}


class ICD(nn.Module):
    """SD-DKD with iCD; any other method of `make_objective` goes the same way."""

    def __init__(self, student: nn.Module, teacher: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.student_tap, self.teacher_tap = FeatureTap(student), FeatureTap(teacher)
        self.objective = make_objective("icd-dkd", num_classes=num_classes)
        self.components: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> ICD:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward_train(self, image: Tensor, target: Tensor, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits and the losses, which the trainer adds up: hence one entry, and the terms apart."""
        student = self.student_tap(image)
        with torch.no_grad():
            teacher = self.teacher_tap(image)
        out = self.objective(student, teacher, target, epoch=epoch)
        self.components = out.components
        return student.logits, {"loss_icd": out.total}


def main() -> None:
    torch.manual_seed(0)
    distiller = ICD(SmallNet(16, num_classes=10), SmallNet(32, num_classes=10), num_classes=10).train()
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=0.05)
    for epoch in (1, 2):
        optimizer.zero_grad()
        _, losses = distiller.forward_train(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)), epoch)
        total = sum(losses.values(), torch.zeros(()))
        total.backward()
        optimizer.step()
        terms = {"total": total, **distiller.components}
        print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
