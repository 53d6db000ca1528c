"""A LightningModule that distils with iCD and logs every term of the loss, without a wait for the device.

    pip install lightning torchvision
    python examples/lightning_module.py

Replace the two models (load the teacher's weights) and the data.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18, resnet34

from icd_kernels import FeatureTap, make_objective

NUM_CLASSES = 10


class Distillation(lightning.LightningModule):
    """SD-KD with iCD."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False).eval()
        self.student_tap, self.teacher_tap = FeatureTap(student), FeatureTap(teacher)
        self.objective = make_objective("icd-kd", num_classes=NUM_CLASSES)

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            teacher_out = self.teacher_tap(images)
        out = self.objective(self.student_tap(images), teacher_out, labels, epoch=self.current_epoch + 1)
        # Tensors, never .item(): Lightning keeps them on the device and reads them when a logger writes.
        self.log_dict({"total": out.total.detach(), **out.components}, on_step=False, on_epoch=True)
        return out.total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [*self.student.parameters(), *self.objective.parameters()]
        return torch.optim.SGD(trained, lr=0.01, momentum=0.9)


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    return resnet18(num_classes=NUM_CLASSES), resnet34(num_classes=NUM_CLASSES)


def fit(module: Distillation) -> dict[str, Tensor]:
    """Two steps on random data. Returns the terms, averaged over the steps."""
    data = TensorDataset(torch.randn(8, 3, 64, 64), torch.randint(NUM_CLASSES, (8,)))
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(max_steps=2, accelerator="cpu", **off)
    trainer.fit(module, DataLoader(data, batch_size=4))
    return trainer.callback_metrics


def main() -> None:
    torch.manual_seed(0)
    terms = fit(Distillation(*networks()))
    print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
