"""The loss as an `nn.Module`, with the paper's and the released code's settings as presets."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from icd_kernels.backends import choose
from icd_kernels.by_head import logits_by_head
from icd_kernels.checks import check_logits, check_map
from icd_kernels.functional import icd_loss
from icd_kernels.heads import Head, head_parameters, is_linear
from icd_kernels.options import (
    DEFAULT_SCALES,
    DEFAULT_TEMPERATURE,
    NORMALIZATIONS,
    check_choice,
    is_number,
    make_options,
    normalization,
)


def class_form_weight(normalize: str, num_classes: int) -> float:
    """γ to begin with for class form: 30/K with `normalize` "zscore", 1 with "l2", 0.3/K where logits keep their size.

    Chosen by an ablation at K = 10; for other K by how the gradient grows, which with "l2" shrinks (docs/defaults.md).

    Raises:
        ValueError: `normalize` is none of these, or `num_classes`, K, is less than 2.
    """
    check_choice("normalize", normalize, NORMALIZATIONS)
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")
    _, spread = normalization(normalize, num_classes)
    if spread == 1:
        return 1.0
    return (0.3 if spread == 0 else 30.0) / num_classes


class ICDLoss(nn.Module):
    """:func:`icd_kernels.icd_loss` with its options fixed, times `weight`.

    Args:
        scales, gram, pyramid, normalize, temperature, scale_weights, reduction, backend: as for `icd_loss`.
        weight: γ, the factor of the whole loss in the training objective.

    Raises:
        TypeError, ValueError: an option is wrong; the message names it, what was expected and what came.
    """

    def __init__(
        self,
        *,
        scales: Iterable[int] = DEFAULT_SCALES,
        gram: str = "class",
        pyramid: str = "adaptive",
        normalize: str = "none",
        temperature: float = DEFAULT_TEMPERATURE,
        scale_weights: Iterable[float] | None = None,
        reduction: str = "mean",
        backend: str = "auto",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not is_number(weight):
            raise TypeError(f"weight must be a number, got {type(weight).__name__}: {weight!r}")
        if not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight!r}")
        self.options = make_options(
            scales=scales,
            gram=gram,
            pyramid=pyramid,
            normalize=normalize,
            temperature=temperature,
            scale_weights=scale_weights,
            reduction=reduction,
        )
        self.backend = backend
        self.weight = weight

    @classmethod
    def paper(cls, **overrides: Any) -> ICDLoss:
        """The paper's text: K x K Gram matrices of plain logits, every scale pooled from the map itself."""
        return cls(**{"gram": "class", "pyramid": "adaptive", "normalize": "none", **overrides})

    @classmethod
    def balanced(cls, num_classes: int, **overrides: Any) -> ICDLoss:
        """Class form on logits of one size, z-scored, with a γ against their number (:func:`class_form_weight`): its
        gradient is about a third of KD's, whatever the networks. Chosen by an ablation (docs/defaults.md)."""
        preset = {"gram": "class", "pyramid": "adaptive", "normalize": "zscore", **overrides}
        return cls(**{"weight": class_form_weight(preset["normalize"], num_classes), **preset})

    @classmethod
    def released(cls, **overrides: Any) -> ICDLoss:
        """The authors' released code: cells x cells Gram matrices of l2-normalised logits, nested pooling from 4 x 4,
        τ = 2, weight γ = 2. For its scale set (1, 2) pass `scale_weights=(1/3, 2/3, 0)` with the default scales."""
        preset = {"gram": "spatial", "pyramid": "nested", "normalize": "l2", "temperature": 2.0, "weight": 2.0}
        return cls(**{**preset, **overrides})

    def forward(
        self, student_features: Tensor, student_head: Head, teacher_features: Tensor, teacher_head: Head
    ) -> Tensor:
        """The weighted loss of a batch.

        Args:
            student_features: (B, C, H, W).
            student_head: an `nn.Linear`, a 1 x 1 `nn.Conv2d`, a (weight, bias) pair; or any callable from (M, C) to
                (M, K), which is then applied to the mean features of all M = B·N regions. A callable gets them in the
                dtype of its parameters, and must not have a BatchNorm in training mode.
            teacher_features: (B, C', H', W').
            teacher_head: likewise.

        Returns:
            A scalar, or (B,) with reduction "none".

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        """
        if not (is_linear(student_head) and is_linear(teacher_head)):
            return self._by_logits_by_head(student_features, student_head, teacher_features, teacher_head)
        student_weight, student_bias = head_parameters(student_head, "student_head")
        teacher_weight, teacher_bias = head_parameters(teacher_head, "teacher_head")
        loss = icd_loss(
            student_features,
            student_weight,
            teacher_features,
            teacher_weight,
            student_bias,
            teacher_bias,
            **self.options._asdict(),
            backend=self.backend,
        )
        return loss * self.weight

    def _by_logits_by_head(
        self, student_features: Tensor, student_head: Head, teacher_features: Tensor, teacher_head: Head
    ) -> Tensor:
        """The same where a head is not linear."""
        student, teacher = self.local_logits(student_features, student_head, teacher_features, teacher_head)
        check_logits(student, teacher, self.options.scales)
        backend = choose(self.backend, student.device.type)
        return backend.gram_kl(student, teacher, self.options) * self.weight

    def local_logits(
        self, student_features: Tensor, student_head: Head, teacher_features: Tensor, teacher_head: Head
    ) -> tuple[Tensor, Tensor]:
        """Local logits (B, K, N) of both networks by :func:`icd_kernels.local_logits`; the teacher's are a constant."""
        check_map(student_features, "student_features")
        check_map(teacher_features, "teacher_features")
        regions = (self.options.scales, self.options.pyramid)
        backend = choose(self.backend, student_features.device.type)
        student = logits_by_head(student_features, student_head, *regions, backend, "student")
        with torch.no_grad():
            teacher = logits_by_head(teacher_features, teacher_head, *regions, backend, "teacher")
        return student, teacher

    def extra_repr(self) -> str:
        shown = {**self.options._asdict(), "backend": self.backend, "weight": self.weight}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
