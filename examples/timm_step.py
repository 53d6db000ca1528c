"""A training step with timm's models: NKD of every region, with iCD.

    pip install timm
    python examples/timm_step.py

Replace the models' names (`pretrained=True` for the teacher) and the random batch. It fits the models whose
`forward_head` pools the map and applies one linear layer, such as ResNets, RegNets, DenseNets and EfficientNets.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from icd_kernels import NetworkOutput, make_objective

NUM_CLASSES = 10


def output(model: nn.Module, images: Tensor) -> NetworkOutput:
    """A forward pass of a timm model, in its two halves."""
    features = model.forward_features(images)
    return NetworkOutput(model.forward_head(features), features, model.get_classifier())


def main() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("resnet18", num_classes=NUM_CLASSES).eval()
    student = timm.create_model("efficientnet_b0", num_classes=NUM_CLASSES).train()
    objective = make_objective("icd-nkd", num_classes=NUM_CLASSES)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for epoch in (1, 2):
        images, labels = torch.randn(4, 3, 64, 64), torch.randint(NUM_CLASSES, (4,))
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_out = output(teacher, images)
        out = objective(output(student, images), teacher_out, labels, epoch=epoch)
        out.total.backward()
        optimizer.step()
        terms = {"total": out.total, **out.components}
        print(" ".join(f"{name}={term.item():.6g}" for name, term in terms.items()))


if __name__ == "__main__":
    main()
