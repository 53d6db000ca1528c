"""Which module is the classifier, and which one's output is the map that is pooled before it: found by evidence.

One forward of a few images, every module watched. The classifier is the linear layer whose output the logits are. The
map is the last output of more than one pixel whose mean is the classifier's input. No name of a model or a layer is
looked at, so that a model nobody knew of is found or refused as surely as a known one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icd_kernels.heads import head_parameters
from icd_kernels.tap.views import View, candidates

RELATIVE_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of the largest element: by how much two ways to compute the same thing may differ."""
MOST_IMAGES = 2
SMALL_IMAGE = 64
"""Pixels a side: below, many networks' last map has a single pixel, and cannot be told from its mean."""
_HARMLESS = (nn.Identity, nn.Dropout, nn.Flatten, nn.AdaptiveAvgPool2d)
"""Not worth naming as what stands between a mean and a classifier."""


class TapError(ValueError):
    """A model whose logits are not a linear layer of the mean of a map; the message says what stands between."""


class Found(NamedTuple):
    """What a tap watches and reads."""

    head_name: str
    head: nn.Linear | nn.Conv2d
    map_name: str
    module: nn.Module
    reads_input: bool
    """Whether the map is what `module` is given, in place of what it returns: a head that is pooled after."""
    view: View


@dataclass(eq=False)  # calls of one module are still told apart
class _Call:
    """One call of a module in the watched forward."""

    name: str
    module: nn.Module
    given: Tensor | None
    returned: Tensor | None
    is_last: bool = True
    """Whether the module was not called again after."""


@dataclass
class _Watch:
    calls: list[_Call] = field(default_factory=list)

    def hook(self, name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            for call in self.calls:
                call.is_last = call.is_last and call.module is not module
            self.calls.append(_Call(name, module, _tensor(given), _tensor(returned)))

        return keep


def find(model: nn.Module, images: Tensor) -> Found:
    """The classifier and the map of `model`, by a forward of a few of the images in eval mode.

    Modes, buffers and random state are left as they were.

    Raises:
        TapError: the logits are not a linear layer of the mean of a map.
    """
    images = images[:MOST_IMAGES]
    watch = _Watch()
    with torch.no_grad():
        with _watched(model, watch):
            logits = logits_of(model(images))
        return _map(watch, _head(watch, logits), (images.shape[-2], images.shape[-1]), logits)


def logits_of(output: Any) -> Tensor:
    """The logits (B, K) among what a model returns: a tensor, the first of a tuple, "logits" of a dict or an object.

    Raises:
        TapError: there are none.
    """
    if hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, dict):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TapError(f"model must return logits (B, K), or a tuple, dict or object that has them first, got {shape}")
    return output


@contextmanager
def _watched(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """`model` in eval mode with every module watched."""
    modes = {module: module.training for module in model.modules()}
    handles = [module.register_forward_hook(watch.hook(name)) for name, module in model.named_modules() if name]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            model.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _head(watch: _Watch, logits: Tensor) -> _Call:
    """The call of the linear layer that gave the logits."""
    for call in reversed(watch.calls):
        if call.returned is None or call.given is None or not _is_linear(call.module):
            continue
        spatial = call.returned.flatten(2).mean(2) if call.returned.ndim == 4 else call.returned
        if spatial.shape == logits.shape and _is_close(spatial, logits):
            return call
    last = f"; the last module called is {_names(watch.calls[-1:])}" if watch.calls else ""
    raise TapError(
        _refusal_after(watch.calls, logits)
        or f"the logits are no output of an nn.Linear or a 1 x 1 nn.Conv2d, nor its mean over the pixels{last}"
    )


def _map(watch: _Watch, head: _Call, image: tuple[int, int], logits: Tensor) -> Found:
    """The map behind the classifier's input."""
    assert head.given is not None
    if head.given.ndim == 4 and head.given.shape[2:].numel() > 1:
        found = Found(head.name, head.module, head.name, head.module, True, View("channels first"))  # type: ignore[arg-type]
        return _checked(found, head.given, image, logits, watch.calls)
    pooled = head.given.flatten(1)
    if pooled.abs().max() == 0:
        raise TapError("the classifier's input is 0 for the probed images: give other images")
    before = watch.calls[: watch.calls.index(head)]
    for call in reversed(before):
        view = _view_of(call, pooled, image)
        if view is not None:
            assert call.returned is not None
            found = Found(head.name, head.module, call.name, call.module, False, view)  # type: ignore[arg-type]
            return _checked(found, call.returned, image, logits, watch.calls)
    hint = (
        f"; images of {image[0]} x {image[1]} may leave one pixel: try larger ones" if min(image) < SMALL_IMAGE else ""
    )
    raise TapError(_refusal(before, head) + hint)


def _view_of(call: _Call, pooled: Tensor, image: tuple[int, int]) -> View | None:
    """How the call's output is the map whose mean is `pooled`; None where it is not."""
    if call.returned is None or not call.is_last or call.returned.shape[0] != pooled.shape[0]:
        return None
    for view in candidates(call.returned, pooled.shape[1]):
        features = view(call.returned, image)
        if features.shape[2:].numel() > 1 and _is_close(features.mean((2, 3)), pooled):
            return view
    return None


def _checked(found: Found, output: Tensor, image: tuple[int, int], logits: Tensor, calls: list[_Call]) -> Found:
    """`found`, once its head on the mean of its map has given the model's logits."""
    features = found.view(output, image)
    weight, bias = head_parameters(found.head)
    dtype = features.dtype  # of an autocast within the model, say
    expected = nn.functional.linear(features.mean((2, 3)), weight.to(dtype), None if bias is None else bias.to(dtype))
    if not _is_close(expected, logits):
        difference = float((expected - logits).abs().max())
        raise TapError(
            _refusal_after(calls, logits)
            or f"{found.head_name!r} of the mean of {found.map_name!r} is {difference:.2g} off the logits"
        )
    return found


def _refusal(before: list[_Call], head: _Call) -> str:
    """What stands between the last map and the classifier."""
    assert head.given is not None
    for place in range(len(before) - 1, -1, -1):
        returned = before[place].returned
        if returned is not None and returned.ndim in (3, 4) and returned[0].numel() > returned.shape[1]:
            last = f"the last map, {before[place].name!r} {tuple(returned.shape)}"
            if returned.ndim == 3 and any(_is_close(token, head.given.flatten(1)) for token in returned.unbind(1)):
                return f"the classifier {head.name!r} reads one token of {last}, a class token say, and not their mean"
            names = _names(_changing(before[place + 1 :]))
            if not names:
                return f"the classifier {head.name!r} is not given the mean over all pixels of {last}"
            return f"between {last}, and the classifier {head.name!r} there is {names}"
    return f"no output of more than one pixel comes before the classifier {head.name!r}"


def _refusal_after(calls: list[_Call], logits: Tensor) -> str | None:
    """What stands between a classifier of every pixel and the pooling; None where the logits are not pooled scores.

    An operation in place, such as SqueezeNet's ReLU, has changed what the classifier's call was kept with.
    """
    maps = [place for place, call in enumerate(calls) if _is_pooled_to(call, logits)]
    before = calls[: maps[-1] + 1] if maps else []
    heads = [place for place, call in enumerate(before) if _scores_pixels(call, logits.shape[1])]
    if not heads:
        return None
    there = _names(_changing(before[heads[-1] + 1 :])) or "a function of its output"
    return (
        f"between the classifier {_names([before[heads[-1]]])}, which is given every pixel, and the pooling there is "
        f"{there}: the logits are not the classifier on the mean of its map"
    )


def _scores_pixels(call: _Call, classes: int) -> bool:
    """Whether the call is that of a linear layer from every pixel to as many numbers as there are classes."""
    returned = call.returned
    return _is_linear(call.module) and returned is not None and returned.ndim == 4 and returned.shape[1] == classes


def _is_pooled_to(call: _Call, logits: Tensor) -> bool:
    """Whether the logits are the mean over the pixels, more than one, of what the call returned."""
    if call.returned is None or call.returned.ndim != 4 or call.returned.shape[2:].numel() == 1:
        return False
    return _is_close(call.returned.mean((2, 3)), logits)


def _changing(calls: list[_Call]) -> list[_Call]:
    """Those of modules without modules of their own, but for the harmless."""
    return [call for call in calls if not any(call.module.children()) and not isinstance(call.module, _HARMLESS)]


def _names(calls: list[_Call]) -> str:
    return ", ".join(f"{call.name!r} ({type(call.module).__name__})" for call in calls)


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1 and module.stride == (1, 1)
    return isinstance(module, nn.Linear)


def _is_close(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    tolerance = max(RELATIVE_ERROR.get(tensor.dtype, 1e-4) for tensor in (first, second))
    return bool((first - second).abs().max() <= tolerance * second.abs().max())


def _tensor(value: Any) -> Tensor | None:
    """The value, or the first of a tuple, where it is a floating-point tensor."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) and value.is_floating_point() else None
