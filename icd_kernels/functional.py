"""The public functions: check, dispatch, compute."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from icd_kernels import checks, options
from icd_kernels.backends import choose
from icd_kernels.by_head import logits_by_head
from icd_kernels.heads import Head
from icd_kernels.options import DEFAULT_SCALES, DEFAULT_TEMPERATURE


def icd_loss(
    student_features: Tensor,
    student_weight: Tensor,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    gram: str = "class",
    pyramid: str = "adaptive",
    normalize: str = "none",
    temperature: float = DEFAULT_TEMPERATURE,
    scale_weights: Iterable[float] | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The iCD loss between a student's and a teacher's penultimate feature maps.

    Every scale m splits each map into m x m cells; a cell's mean feature goes through its network's classifier and
    gives local logits; the loss compares the Gram matrices of these logits row by row, KL(teacher ‖ student), and
    weighs the scales. The teacher is a constant. Definition and gradient: docs/definition.md. Source: iCD (AAAI-26
    student abstract), section "Methodology".

    Args:
        student_features: (B, C, H, W), any strides. Its gradient has its layout.
        student_weight: (K, C), as `nn.Linear.weight`.
        teacher_features: (B, C', H', W'); only B must be the student's.
        teacher_weight: (K, C').
        student_bias: (K,) or None.
        teacher_bias: (K,) or None.
        scales: ints of 1 or more, in any order.
        gram: "class" (the paper: K x K for every image and cell), "spatial" (the released code: cells x cells for every
            image and scale) or "sample" (B x B for every cell).
        pyramid: "adaptive" (every scale pools the map) or "nested" (coarse scales pool the finest grid).
        normalize: of every local logit vector over the classes: "none", "l2", "zscore" or "center" (minus its mean).
        temperature: τ > 0; Gram matrices are divided by it before the softmax.
        scale_weights: one weight of 0 or more for each scale; None is (1, 2, .., S) / (S(S+1)/2). A scale of weight 0
            is not computed.
        reduction: "mean" over the images, "sum", or "none".
        backend: "auto", or a name of :func:`available_backends`.

    Tensors may be float64, float32, bfloat16 or float16, each its own. The math and the loss are float64 if any is
    float64 and float32 otherwise, under autocast too.

    Returns:
        The loss: a scalar, or (B,) with reduction "none". NaN or inf in gives NaN out.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        BackendUnavailableError: a named backend is not usable here.
    """
    checked = options.make_options(
        scales=scales,
        gram=gram,
        pyramid=pyramid,
        normalize=normalize,
        temperature=temperature,
        scale_weights=scale_weights,
        reduction=reduction,
    )
    tensors = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
    checks.check_icd_inputs(*tensors)
    return choose(backend, student_features.device.type).icd_loss(*tensors, checked)


def region_features(
    features: Tensor,
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    pyramid: str = "adaptive",
    backend: str = "auto",
) -> Tensor:
    """Mean features of every region of a map: what a head of any kind makes local logits of.

    Args:
        features: (B, C, H, W), any strides; float64, float32, bfloat16 or float16.
        scales: as for :func:`icd_loss`.
        pyramid: as for :func:`icd_loss`.
        backend: as for :func:`icd_loss`.

    Returns:
        (B, N, C), N the sum of squared scales: scale by scale in the given order, cells row-major. float64 if the map
        is, otherwise float32. Differentiable, any number of times.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        BackendUnavailableError: a named backend is not usable here.
    """
    checked_scales = options.check_scales(scales)
    checked_pyramid = options.check_pyramid(pyramid)
    checks.check_map(features)
    return choose(backend, features.device.type).region_features(features, checked_scales, checked_pyramid)


def region_logits(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    pyramid: str = "adaptive",
    backend: str = "auto",
) -> Tensor:
    """Local logits W·mean(cell) + b of every region of one network; differentiable in all three tensors.

    Args:
        features: (B, C, H, W), any strides.
        weight: (K, C).
        bias: (K,) or None.
        scales: as for :func:`icd_loss`.
        pyramid: as for :func:`icd_loss`.
        backend: as for :func:`icd_loss`.

    Returns:
        (B, K, N), N the sum of squared scales: scale by scale in the given order, cells row-major. float64 if any
        tensor is, otherwise float32. Its strides are the backend's choice.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        BackendUnavailableError: a named backend is not usable here.
    """
    checked_scales = options.check_scales(scales)
    checked_pyramid = options.check_pyramid(pyramid)
    checks.check_network(features, weight, bias)
    return choose(backend, features.device.type).region_logits(features, weight, bias, checked_scales, checked_pyramid)


def local_logits(
    features: Tensor,
    head: Head,
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    pyramid: str = "adaptive",
    backend: str = "auto",
) -> Tensor:
    """Local logits of every region by a head of any kind: the head applied to the mean features of the region.

    Args:
        features: (B, C, H, W), any strides.
        head: an `nn.Linear`, a 1 x 1 `nn.Conv2d` or a (weight, bias) pair, for which this is :func:`region_logits`; or
            any callable from (M, C) to (M, K), which is given all M = B·N regions, in the dtype of its parameters.
        scales: as for :func:`icd_loss`.
        pyramid: as for :func:`icd_loss`.
        backend: as for :func:`icd_loss`.

    Returns:
        (B, K, N), as :func:`region_logits`.

    Raises:
        TypeError, ValueError: an argument is wrong, or the head has a BatchNorm in training mode, whose statistics over
            regions are not those over images.
        BackendUnavailableError: a named backend is not usable here.
    """
    checked_scales = options.check_scales(scales)
    checked_pyramid = options.check_pyramid(pyramid)
    checks.check_map(features)
    chosen = choose(backend, features.device.type)
    return logits_by_head(features, head, checked_scales, checked_pyramid, chosen, "")


def gram_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    scales: Iterable[int] = DEFAULT_SCALES,
    gram: str = "class",
    normalize: str = "none",
    temperature: float = DEFAULT_TEMPERATURE,
    scale_weights: Iterable[float] | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The iCD loss from local logits that are already there, such as :func:`region_logits` returns.

    Args:
        student_logits: (B, K, N), any strides, N the sum of squared scales.
        teacher_logits: (B, K, N), a constant.
        scales, gram, normalize, temperature, scale_weights, reduction, backend: as for :func:`icd_loss`.

    Returns:
        The loss: a scalar, or (B,) with reduction "none".

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was expected and what came.
        BackendUnavailableError: a named backend is not usable here.
    """
    checked = options.make_options(
        scales=scales,
        gram=gram,
        normalize=normalize,
        temperature=temperature,
        scale_weights=scale_weights,
        reduction=reduction,
    )
    checks.check_logits(student_logits, teacher_logits, checked.scales)
    return choose(backend, student_logits.device.type).gram_kl(student_logits, teacher_logits, checked)
