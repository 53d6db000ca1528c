"""iCD as a loss of torchdistill: registered under a name, configured in icd.yaml, fed by torchdistill's forward hooks.

    pip install torchdistill torchvision
    python examples/torchdistill/train.py

To use it in your project: import `icd_objective`, so that the name is registered, and copy the entries of icd.yaml.
Replace the two models there (load the teacher's weights), the paths of the map and of the head, and the random images.
"""

from __future__ import annotations

from pathlib import Path

import torch
from icd_objective import ICDObjective
from torch.utils.data import TensorDataset
from torchdistill.common.yaml_util import load_yaml_file
from torchdistill.core.distillation import get_distillation_box

CONFIG = Path(__file__).with_name("icd.yaml")


def main() -> None:
    torch.manual_seed(0)
    config = load_yaml_file(str(CONFIG))
    teacher, student = config["models"]["teacher_model"].eval(), config["models"]["student_model"]
    datasets = {"train": TensorDataset(torch.randn(8, 3, 64, 64), torch.randint(10, (8,)))}
    box = get_distillation_box(
        teacher,
        student,
        datasets,
        config["train"],
        device=torch.device("cpu"),
        device_ids=None,
        distributed=False,
        lr_factor=1,
    )
    objective, _ = box.criterion.term_dict["icd"]
    assert isinstance(objective, ICDObjective)
    for epoch in range(box.num_epochs):
        objective.epoch = epoch + 1
        box.pre_epoch_process(epoch=epoch)
        for images, labels, supplement in box.train_data_loader:
            loss = box.forward_process(images, labels, supp_dict=supplement)
            box.post_forward_process(loss=loss)
            terms = {"total": loss.detach(), **objective.components}
            print(" ".join(f"{name}={value.item():.6g}" for name, value in terms.items()))


if __name__ == "__main__":
    main()
