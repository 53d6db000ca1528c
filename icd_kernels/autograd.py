"""Autograd over the operators of a compiled backend: what is kept from forward, and who gets which gradient.

The loss's gradient by the local logits is known in the forward (docs/definition.md, "Backward"), so the forward writes
it beside the loss and the backward only scales it, reads no teacher tensor and recomputes no softmax.
The teacher is a constant: nothing here ever returns a gradient for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter

from icd_kernels.geometry import coarser, finest_grid
from icd_kernels.options import Options
from icd_kernels.problem import GramOptions, Problem, lower, lower_gram


class Wanted(NamedTuple):
    """Which of the student's tensors need a gradient."""

    features: bool
    weight: bool
    bias: bool

    @classmethod
    def of(cls, features: Tensor, weight: Tensor, bias: Tensor | None) -> Wanted:
        if not torch.is_grad_enabled():
            return cls(False, False, False)
        return cls(features.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)


def icd_loss(
    operators: str,
    student_features: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_features: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    options: Options,
) -> Tensor:
    """The loss by the operators of namespace `operators`; without a gradient to compute, the forward operator alone."""
    tensors = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
    refuse_transforms(tensors)
    wanted = Wanted.of(student_features, student_weight, student_bias)
    problem = lower(options, student_weight.shape[0], student_features.shape, teacher_features.shape)
    if any(wanted):
        return ICDLossFunction.apply(operators, *tensors, problem, wanted)
    with torch.no_grad():  # the teacher may require a gradient; the loss does not
        return _namespace(operators).icd_loss(*tensors, *problem.options, *problem[1:], False, False)[0]


def region_features(operators: str, features: Tensor, scales: tuple[int, ...], pyramid: str) -> Tensor:
    """Pooled features by the operators of namespace `operators`."""
    refuse_transforms((features,))
    finest = finest_grid(scales, pyramid, *features.shape[2:])
    # On a CPU the finest grid alone is pooled where it says all; a GPU rather has one launch.
    if pyramid == "adaptive" and not (finest and features.device.type == "cpu"):
        return RegionFeaturesFunction.apply(operators, features, scales)
    return coarser(RegionFeaturesFunction.apply(operators, features, (finest,)), scales)


def region_logits(
    operators: str, features: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[int, ...], pyramid: str
) -> Tensor:
    """Local logits by the operators of namespace `operators`."""
    refuse_transforms((features, weight, bias))
    wanted = Wanted.of(features, weight, bias)
    finest = finest_grid(scales, pyramid, *features.shape[2:])
    if any(wanted):
        return RegionLogitsFunction.apply(operators, _anchor(features), features, weight, bias, scales, finest, wanted)
    return _namespace(operators).region_logits(features, weight, bias, scales, finest, False)[0]


def gram_kl(operators: str, student_logits: Tensor, teacher_logits: Tensor, options: Options) -> Tensor:
    """The KL of the Gram matrices of given logits by the operators of namespace `operators`."""
    refuse_transforms((student_logits, teacher_logits))
    numbers = lower_gram(options, student_logits.shape[1])
    if torch.is_grad_enabled() and student_logits.requires_grad:
        return GramKLFunction.apply(operators, _anchor(student_logits), student_logits, teacher_logits, numbers)
    with torch.no_grad():
        return _namespace(operators).gram_kl(student_logits, teacher_logits, *numbers, False)[0]


def row_losses(
    operators: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    factors: Sequence[float],
    temperature: float,
    complementary_weight: float,
) -> Tensor:
    """Losses (B, N) of logit rows (B, K, N) by the operators of namespace `operators`."""
    refuse_transforms((student_logits, teacher_logits))
    settings = (factors, temperature, complementary_weight)
    if torch.is_grad_enabled() and student_logits.requires_grad:
        anchor = _anchor(student_logits)
        return RowLossesFunction.apply(operators, anchor, student_logits, teacher_logits, target, settings)
    with torch.no_grad():
        return _namespace(operators).row_losses(student_logits, teacher_logits, target, *settings, False)[0]


class ICDLossFunction(Function):
    """icd_loss with its gradient by the student's features, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        operators: str,
        student_features: Tensor,
        student_weight: Tensor,
        student_bias: Tensor | None,
        teacher_features: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        problem: Problem,
        wanted: Wanted,
    ) -> Tensor:
        networks = (student_features, student_weight, student_bias, teacher_features, teacher_weight, teacher_bias)
        loss, saved, pooled = _namespace(operators, *networks).icd_loss(
            *networks, *problem.options, *problem[1:], True, wanted.weight
        )
        ctx.save_for_backward(saved, pooled, loss, student_weight, student_bias)  # the loss: see _once
        ctx.operators, ctx.problem, ctx.wanted = operators, problem, wanted
        ctx.layout = _gradient_layout(student_features, student_weight, student_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved, pooled, *inputs = ctx.saved_tensors
        numbers = (*ctx.layout, *ctx.problem.options, ctx.problem.student_finest, ctx.wanted)
        operators = _namespace(ctx.operators, grad_loss, saved, pooled, inputs[1])
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            grads = operators.icd_loss_backward(grad_loss, saved, pooled, inputs[1], *numbers)
        return None, *_only_wanted(_once(grads, grad_loss, *inputs), ctx.wanted), None, None, None, None, None


class RegionFeaturesFunction(Function):
    """region_features, which is linear: its derivative and :class:`_Scattered` are each other's, to any order."""

    @staticmethod
    def forward(ctx: Any, operators: str, features: Tensor, scales: tuple[int, ...]) -> Tensor:
        ctx.operators, ctx.scales = operators, scales
        ctx.layout = features.shape, _dense_stride(features), features.dtype
        return _namespace(operators, features).region_features(features, scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, _Scattered.apply(ctx.operators, grad, ctx.layout, ctx.scales), None


class _Scattered(Function):
    """The gradient by the features: every pixel collects from the cells that cover it."""

    @staticmethod
    def forward(ctx: Any, operators: str, grad: Tensor, layout: tuple[Any, ...], scales: tuple[int, ...]) -> Tensor:
        ctx.operators, ctx.scales, ctx.dtype = operators, scales, grad.dtype
        return _namespace(operators, grad).region_features_backward(grad, *layout, scales)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, RegionFeaturesFunction.apply(ctx.operators, grad.to(ctx.dtype), ctx.scales), None, None


class RegionLogitsFunction(Function):
    """region_logits with its gradient by features, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        operators: str,
        anchor: Tensor,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scales: tuple[int, ...],
        finest: int,
        wanted: Wanted,
    ) -> Tensor:
        logits, pooled = _namespace(operators).region_logits(features, weight, bias, scales, finest, wanted.weight)
        ctx.save_for_backward(pooled, anchor, weight, bias)
        ctx.operators, ctx.scales, ctx.finest, ctx.wanted = operators, scales, finest, wanted
        ctx.layout = _gradient_layout(features, weight, bias)
        return logits

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[Tensor | None, ...]:
        pooled, *inputs = ctx.saved_tensors
        with torch.no_grad():
            grads = _namespace(ctx.operators).region_logits_backward(
                grad_logits, pooled, inputs[1], *ctx.layout, ctx.scales, ctx.finest, ctx.wanted
            )
        return None, None, *_only_wanted(_once(grads, grad_logits, *inputs), ctx.wanted), None, None, None


class GramKLFunction(Function):
    """gram_kl with its gradient by the student's logits."""

    @staticmethod
    def forward(
        ctx: Any, operators: str, anchor: Tensor, student_logits: Tensor, teacher_logits: Tensor, options: GramOptions
    ) -> Tensor:
        loss, saved = _namespace(operators).gram_kl(student_logits, teacher_logits, *options, True)
        ctx.save_for_backward(saved, anchor)
        ctx.operators, ctx.options, ctx.dtype = operators, options, student_logits.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved, anchor = ctx.saved_tensors
        with torch.no_grad():
            grad = _namespace(ctx.operators).gram_kl_backward(grad_loss, saved, ctx.dtype, *ctx.options)
        return None, None, *_once((grad,), grad_loss, anchor), None, None


class RowLossesFunction(Function):
    """row_losses with its gradient by the student's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        operators: str,
        anchor: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        settings: tuple[Any, ...],
    ) -> Tensor:
        losses, saved = _namespace(operators).row_losses(student_logits, teacher_logits, target, *settings, True)
        ctx.save_for_backward(saved, anchor)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        saved, anchor = ctx.saved_tensors
        with torch.no_grad():
            grad = saved * grad_losses[:, None]
        return None, None, *_once((grad,), grad_losses, anchor), None, None, None


class _FirstDerivative(Function):
    """Passes first derivatives on and refuses to be differentiated.

    `once_differentiable` would leave them out of the graph where the upstream gradient needs none, and a gradient
    penalty would then silently miss this loss's part.
    """

    @staticmethod
    def forward(ctx: Any, count: int, *grads_and_sources: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(grad.detach() for grad in grads_and_sources[:count] if grad is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "icd_kernels: the fused backends have no second derivative; use backend='reference' to differentiate twice"
        )


def refuse_transforms(tensors: Sequence[Tensor | None]) -> None:
    """Raises where a tensor carries a forward-mode derivative, which the operators would drop: the result's would be 0;
    and within a transform of torch.func, which they do not know.

    Raises:
        RuntimeError: one of the two is the case.
    """
    if torch.compiler.is_compiling():
        return
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
                raise RuntimeError(
                    "icd_kernels: the fused backends have no forward-mode derivative (torch.func.jvp, forward_ad); "
                    "use backend='reference'"
                )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "icd_kernels: the fused backends do not run within torch.func (grad, vmap, jacrev, ..): use "
            "backend='reference' there, or torch.autograd.grad"
        )


def _anchor(tensor: Tensor) -> Tensor:
    """Zero-element tensor with `tensor`'s autograd history; keeps no data."""
    return tensor[:0].clone()


def _once(grads: Sequence[Tensor], *sources: Tensor | None) -> tuple[Tensor, ...]:
    """`grads`, which raise where they are differentiated again (with create_graph=True) by any of `sources`.

    The sources list every tensor that the gradients depend on, by itself, by the loss that came of it, or by its
    anchor: autograd visits only paths to requested inputs.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return tuple(grads)
    return _FirstDerivative.apply(len(grads), *grads, *sources)


def _only_wanted(grads: Sequence[Tensor], wanted: Wanted) -> tuple[Tensor | None, ...]:
    return tuple(grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True))


def _gradient_layout(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.dtype]:
    """Size, stride and dtype of the features' gradient, and the bias's dtype (the weight's where there is none)."""
    return features.shape, _dense_stride(features), features.dtype, (weight if bias is None else bias).dtype


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a dense tensor with `tensor`'s order of dimensions: channels-last stays channels-last."""
    if tensor.is_contiguous():
        return tensor.stride()
    stride, dense = tensor.stride(), []
    for dim in range(tensor.ndim):
        step = 1
        for other in range(tensor.ndim):  # no sort: torch.compile cannot sort symbolic strides
            if stride[other] < stride[dim] or (stride[other] == stride[dim] and other > dim):
                step = step * tensor.shape[other]
        dense.append(step)
    return tuple(dense)


PLAIN: dict[str, Any] = {}
"""Namespaces whose operators are Python functions, by name: called so, they are spared the way through PyTorch's
dispatcher and back, about a fifth of the host's time of a step."""


def _namespace(operators: str, *tensors: Tensor | None) -> Any:
    """The operators, or the functions behind them where nothing could see the difference: plain tensors, and neither a
    compiler nor a dispatch mode that looks on."""
    plain = PLAIN.get(operators)
    if plain is not None and not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0:
        kinds = {type(tensor) for tensor in tensors}
        if kinds <= _PLAIN_KINDS:
            return plain
    return getattr(torch.ops, operators)


_PLAIN_KINDS = {Tensor, Parameter, type(None)}
