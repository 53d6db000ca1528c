"""A Trainer of Hugging Face that distils image classifiers with iCD.

    pip install transformers accelerate
    python examples/huggingface_trainer.py

Replace the two models (`from_pretrained` for the teacher) and the random images. Both see the same `pixel_values`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
)

from icd_kernels import FeatureTap, make_objective

NUM_CLASSES = 10


class ICDTrainer(Trainer):
    """Any method of `make_objective` that has no parameters of its own."""

    def __init__(self, *arguments: Any, teacher: nn.Module, method: str, num_classes: int, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.teacher_tap = FeatureTap(teacher.requires_grad_(False).eval().to(self.args.device))
        self.objective = make_objective(method, num_classes=num_classes).to(self.args.device)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: the Trainer divides it when it accumulates
        self.taps: dict[nn.Module, FeatureTap] = {}
        self.components: dict[str, Tensor] = {}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        tap = self.taps.setdefault(model, FeatureTap(model))  # the model as the Trainer has wrapped it
        with torch.no_grad():
            teacher_out = self.teacher_tap(inputs["pixel_values"])
        student_out = tap(inputs["pixel_values"])
        epoch = int(self.state.epoch or 0) + 1
        out = self.objective(student_out, teacher_out, inputs["labels"], epoch=epoch)
        self.components = out.components
        return (out.total, {"logits": student_out.logits}) if return_outputs else out.total

    def log(self, logs: dict[str, float], *arguments: Any, **more: Any) -> None:
        """Each of the objective's terms, of the last step, beside the loss."""
        terms = {name: term.item() for name, term in self.components.items()} if "loss" in logs else {}
        super().log({**logs, **terms}, *arguments, **more)


def networks() -> tuple[nn.Module, nn.Module]:
    """Student and teacher."""
    small = ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=4, num_labels=NUM_CLASSES)
    large = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_labels=NUM_CLASSES)
    return ConvNextForImageClassification(small), ResNetForImageClassification(large)


def images(count: int) -> list[dict[str, Any]]:
    """As a data set gives them."""
    return [{"pixel_values": torch.randn(3, 64, 64), "labels": number % NUM_CLASSES} for number in range(count)]


def main() -> None:
    torch.manual_seed(0)
    student, teacher = networks()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=2, per_device_train_batch_size=4, logging_steps=1, report_to=[], disable_tqdm=True
        )
        method = {"teacher": teacher, "method": "icd-kd", "num_classes": NUM_CLASSES}
        trainer = ICDTrainer(student, arguments, train_dataset=images(8), eval_dataset=images(4), **method)
        trainer.train()
        for logs in trainer.state.log_history:
            if "loss" in logs:
                names = {"loss": "total"}
                terms = {names.get(name, name): logs[name] for name in ("loss", *trainer.components)}
                print(" ".join(f"{name}={term:.6g}" for name, term in terms.items()))
        print(f"evaluated: {trainer.evaluate()['eval_loss']:.6g}")


if __name__ == "__main__":
    main()
