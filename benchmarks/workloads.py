"""What is timed: two networks' penultimate feature maps and heads, by the shapes of real distillation runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGIT_SIZE = 3.0
"""Standard deviation of a pixel's logits, about that of trained networks; a cell's are smaller, being means."""

FORMS: dict[str, dict[str, Any]] = {
    "spatial": {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0},
    "class": {"gram": "class", "pyramid": "adaptive", "normalize": "none", "temperature": 4.0},
}
"""Options of the loss: those of the released code and those of the paper's text. Scales are (1, 2, 4) in both."""


class Inputs(NamedTuple):
    """The tensors of `icd_loss`, in its order. Maps are (B, C, H, W), weights (K, C), biases (K,)."""

    student_features: Tensor
    student_weight: Tensor
    teacher_features: Tensor
    teacher_weight: Tensor
    student_bias: Tensor
    teacher_bias: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """What training differentiates: the student's features, weight and bias."""
        return self.student_features, self.student_weight, self.student_bias

    def images(self, first: int, end: int) -> Inputs:
        """The same networks on some of the images."""
        return self._replace(
            student_features=self.student_features[first:end], teacher_features=self.teacher_features[first:end]
        )


class Workload(NamedTuple):
    """A teacher and a student on one batch: channels, height and width of their maps, and the classes of both heads."""

    title: str
    batch: int
    teacher: tuple[int, int, int]
    student: tuple[int, int, int]
    classes: int

    @property
    def shapes(self) -> str:
        """Batch, maps and classes, to read."""
        teacher, student = ("x".join(map(str, network)) for network in (self.teacher, self.student))
        return f"B {self.batch}, {teacher}→{student}, K {self.classes:,}"

    @property
    def slug(self) -> str:
        """The title in plain letters, for names of files and tests."""
        return self.title.replace(" ", "-").replace("→", "-")

    def with_batch(self, batch: int) -> Workload:
        return self._replace(batch=batch)

    def inputs(
        self,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        layout: torch.memory_format = torch.contiguous_format,
        seed: int = 0,
    ) -> Inputs:
        """Random maps as after a ReLU, and heads that give logits of a trained network's size. Leaves require grad."""
        generator = torch.Generator().manual_seed(seed)
        student_features, student_weight, student_bias = self._network(self.student, generator)
        teacher_features, teacher_weight, teacher_bias = self._network(self.teacher, generator)
        student_features, teacher_features = (
            features.contiguous(memory_format=layout) for features in (student_features, teacher_features)
        )
        inputs = Inputs(student_features, student_weight, teacher_features, teacher_weight, student_bias, teacher_bias)
        inputs = Inputs(*(tensor.to(device=device, dtype=dtype) for tensor in inputs))
        for leaf in inputs.leaves():
            leaf.requires_grad_()
        return inputs

    def _network(self, shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        channels = shape[0]
        features = torch.randn(self.batch, *shape, generator=generator).relu_()
        mean_square = 0.5  # of a standard normal after ReLU
        weight = torch.randn(self.classes, channels, generator=generator)
        bias = torch.randn(self.classes, generator=generator)
        return features, weight * (LOGIT_SIZE / (channels * mean_square) ** 0.5), bias * 0.1


CIFAR_RESNET32X4_MOBILENETV2 = Workload("CIFAR-100 ResNet32x4→MobileNetV2", 64, (256, 8, 8), (1280, 2, 2), 100)
CIFAR_RESNET50_MOBILENETV2 = Workload("CIFAR-100 ResNet50→MobileNetV2", 64, (2048, 4, 4), (1280, 2, 2), 100)
CUB_RESNET32X4_MOBILENETV2 = Workload("CUB-200 ResNet32x4→MobileNetV2", 64, (256, 28, 28), (1280, 7, 7), 200)
CUB_RESNET32X4_SHUFFLENETV1 = Workload("CUB-200 ResNet32x4→ShuffleNetV1", 64, (256, 28, 28), (960, 14, 14), 200)
CUB_RESNET50_SHUFFLENETV1 = Workload("CUB-200 ResNet50→ShuffleNetV1", 64, (2048, 14, 14), (960, 14, 14), 200)
CUB_VGG13_VGG8 = Workload("CUB-200 VGG13→VGG8", 64, (512, 28, 28), (512, 28, 28), 200)
IMAGENET_RESNET50_MOBILENETV2 = Workload("ImageNet ResNet50→MobileNetV2", 256, (2048, 7, 7), (1280, 7, 7), 1000)
IMAGENET21K_RESNET50_MOBILENETV2 = Workload("ImageNet-21k ResNet50→MobileNetV2", 256, (2048, 7, 7), (1280, 7, 7), 21841)

WORKLOADS = (
    CIFAR_RESNET32X4_MOBILENETV2,
    CIFAR_RESNET50_MOBILENETV2,
    CUB_RESNET32X4_MOBILENETV2,
    CUB_RESNET32X4_SHUFFLENETV1,
    CUB_RESNET50_SHUFFLENETV1,
    CUB_VGG13_VGG8,
    IMAGENET_RESNET50_MOBILENETV2,
    IMAGENET21K_RESNET50_MOBILENETV2,
)
