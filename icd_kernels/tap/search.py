"""Which module's output is the map that is pooled, and what leads from there to the logits: found by evidence.

One forward of a few images, every module and every PyTorch function watched. The map is the last output of more than
one pixel whose mean is a vector that the logits are made of, and of nothing else of that forward. No name of a model
or a layer is looked at, so that a model nobody knew of is found or refused as surely as a known one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from icd_kernels.heads import head_parameters, is_linear
from icd_kernels.tap.errors import TapError
from icd_kernels.tap.tail import Call, Recorder, Tail, depending_on, function_modes
from icd_kernels.tap.views import View, candidates, patch_of

RELATIVE_ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of the largest element: by how much two ways to compute the same thing may differ."""
MOST_IMAGES = 2
SMALL_IMAGE = 64
"""Pixels a side: below, many networks' last map has a single pixel, and cannot be told from its mean."""
_HARMLESS = (nn.Identity, nn.Dropout, nn.Flatten, nn.AdaptiveAvgPool2d)
"""Not worth naming as what stands between a mean and a classifier."""


class Found(NamedTuple):
    """What a tap watches and reads."""

    map_name: str
    view: View
    channels: int
    order: int
    """Which of the vectors (B, channels) that are made of the map is its mean: 0 is the first."""
    tail_names: tuple[str, ...]
    """Modules that were called between the pooling and the logits, but for the harmless."""
    is_within_mode: bool = False
    """Whether the model itself has a mode on (a device context, say) where the map is made and after."""
    reads_input: bool = False
    """Whether the map is what the module is given, in place of what it returns: a linear head that is pooled after."""
    tail: Tail | None = None
    """The probed forward's, for a compiled model, whose own forwards cannot be looked into."""


@dataclass(eq=False)  # calls of one module are still told apart
class _Call:
    """One call of a module in the watched forward."""

    name: str
    module: nn.Module
    given: Tensor | None
    returned: Tensor | None
    place: int
    """How many functions had been called before it returned."""
    modes: int
    """How many modes were on."""
    is_last: bool = True
    """Whether the module was not called again after."""


@dataclass
class _Watch:
    recorder: Recorder
    calls: list[_Call] = field(default_factory=list)

    def hook(self, name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            for call in self.calls:
                call.is_last = call.is_last and call.module is not module
            place = len(self.recorder.calls)
            self.calls.append(_Call(name, module, _tensor(given), _tensor(returned), place, function_modes()))

        return keep


def find(model: nn.Module, images: Tensor, kwargs: dict[str, Any], tokens: str) -> Found:
    """The map of `model` and what leads from its mean to the logits, by a forward of a few of the images in eval mode.

    Modes, buffers and random state are left as they were.

    Raises:
        TapError: the logits are not a function of the mean of a map.
    """
    count = images.shape[0]
    few = {name: _few(value, count) for name, value in kwargs.items()}
    images = images[:MOST_IMAGES]
    _check_devices(model, images)
    watch = _Watch(Recorder(everything=True))
    with torch.no_grad():
        with _watched(model, watch), watch.recorder:
            modes = function_modes()
            logits = logits_of(model(images, **few))
        if not bool(logits.isfinite().all()):
            raise TapError("the logits are not finite for the probed images: weights that are NaN, say")
        image = (images.shape[-2], images.shape[-1])
        inputs = [images, *(value for value in few.values() if isinstance(value, Tensor))]
        search = _Search(watch, inputs, logits, image)
        found = search.pooled_after() or search.pooled_before() or search.by_token(tokens) or search.refuse()
        return found._replace(
            is_within_mode=any(call.name == found.map_name and call.modes != modes for call in watch.calls)
        )


def logits_of(output: Any) -> Tensor:
    """The logits (B, K) among what a model returns: a tensor, the first of a tuple, "logits" of a dict or an object.

    Raises:
        TapError: there are none.
    """
    if hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, dict):
        if "logits" not in output:
            raise TapError(
                f"model must return logits, in a dict under 'logits', got the keys {sorted(map(str, output))}"
            )
        output = output["logits"]
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TapError(f"model must return logits (B, K), or a tuple, dict or object that has them first, got {shape}")
    return output


def _few(value: Any, count: int) -> Any:
    """A further input for the probed images alone: its first rows where it has one for each image."""
    is_of_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count
    return value[:MOST_IMAGES] if is_of_batch else value


def _check_devices(model: nn.Module, images: Tensor) -> None:
    if images.is_meta or any(parameter.is_meta for parameter in model.parameters()):
        raise TapError(
            "model and images must hold values to be looked at, got meta tensors: materialise the model first"
        )


@contextmanager
def _watched(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """`model` in eval mode with every module watched that can be: scripted ones take no hooks."""
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with ExitStack() as hooks, torch.random.fork_rng(devices=list(devices)):
        try:
            for name, module in model.named_modules():
                if name and not isinstance(module, torch.jit.ScriptModule):
                    hooks.callback(module.register_forward_hook(watch.hook(name)).remove)
            model.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class _Head(NamedTuple):
    """What leads from a vector to the logits."""

    channels: int
    error: float
    """How far the vector is from the mean that was expected."""
    order: int
    tail: Tail
    names: tuple[str, ...]


class _Search:
    """What a watched forward shows."""

    def __init__(self, watch: _Watch, inputs: list[Tensor], logits: Tensor, image: tuple[int, int]) -> None:
        self.calls = watch.calls
        self.functions = watch.recorder.calls
        _, self.live = depending_on(inputs, self.functions)
        self.logits = logits
        self.image = image
        self.blocked: str | None = None
        """Why the logits are not made of a mean that was there."""

    def pooled_after(self) -> Found | None:
        """A linear head of every pixel, whose scores are pooled: the map is what it is given."""
        for call in reversed(self.calls):
            given, returned = call.given, call.returned
            if given is None or returned is None or returned.ndim != 4 or returned.shape[2:].numel() == 1:
                continue
            if not isinstance(call.module, nn.Conv2d) or not is_plain_linear(call.module) or not call.is_last:
                continue
            # Its scores may have been changed in place since, by a ReLU say: what counts is the head of the mean.
            weight, bias = head_parameters(call.module)
            if weight.shape[0] != self.logits.shape[1]:
                continue
            scores = nn.functional.linear(given.mean((2, 3)).to(weight.dtype), weight, bias)
            if is_close(scores, self.logits):
                view = View("channels first")
                return Found(call.name, view, given.shape[1], 0, (call.name,), reads_input=True)
        return None

    def pooled_before(self) -> Found | None:
        """A map whose mean is a vector that the logits are made of."""
        for call in reversed(self.calls):
            if not call.is_last or not _has_pixels(call.returned, self.logits):
                continue
            heads = [(view, self._head(call, features.mean((2, 3)))) for view, features in self._views(call)]
            fitting = [(view, head) for view, head in heads if head is not None]
            if fitting:  # of tokens that are alike, several prefixes may: the closest is right
                view, head = min(fitting, key=lambda pair: pair[1].error)
                return Found(call.name, view, head.channels, head.order, head.names, tail=head.tail)
        return None

    def by_token(self, tokens: str) -> Found | None:
        """A token that the head reads, where the caller takes the patches for it."""
        for call in reversed(self.calls):
            returned = call.returned
            if returned is None or returned.ndim != 3 or not call.is_last or returned.shape[0] != len(self.logits):
                continue
            head = self._head(call, returned[:, 0])
            if head is None:
                continue
            patch = self._patch(returned.shape[1])
            if tokens != "patches" or patch is None:
                raise TapError(
                    f"the classifier reads one token of the last map, {call.name!r} {tuple(returned.shape)}, a class "
                    'token say, and not their mean; FeatureTap(model, tokens="patches") takes the patches through its '
                    "head all the same, a choice that the model's authors did not make"
                )
            view = View("tokens", returned.shape[1] - patch.tokens(self.image), patch=patch)
            return Found(call.name, view, head.channels, head.order, head.names, tail=head.tail)
        return None

    def refuse(self) -> Found:
        """Raises TapError with what stands in the way."""
        if self.blocked is not None:
            raise TapError(self.blocked)
        hint = ""
        if min(self.image) < SMALL_IMAGE:
            hint = f"; images of {self.image[0]} x {self.image[1]} may leave one pixel: try larger ones"
        for place in range(len(self.calls) - 1, -1, -1):
            call = self.calls[place]
            if call.returned is not None and _has_pixels(call.returned, self.logits):
                after = _described(_changing(self.calls[place + 1 :]))
                last = f"the last map, {call.name!r} {tuple(call.returned.shape)}"
                if not after:
                    raise TapError(f"the logits are made of {last} by no module{hint}")
                raise TapError(f"no vector between {last}, and the logits is its mean; after it there is {after}{hint}")
        raise TapError(f"no output of more than one pixel comes before the logits{hint}")

    def _views(self, call: _Call) -> Iterator[tuple[View, Tensor]]:
        """Every way to read the call's output as a map."""
        returned = call.returned
        assert returned is not None
        for view in candidates(returned, self.image, self._patch):
            features = view(returned, self.image)
            if features.shape[2:].numel() > 1:
                yield view, features

    def _head(self, call: _Call, expected: Tensor) -> _Head | None:
        """What leads to the logits from the vector (B, C) that is expected to be made of the call's output.

        The first such vector whose calls lead to the logits; None where none is there.
        """
        assert call.returned is not None
        if expected.abs().max() == 0:  # every vector of zeros would be taken for it
            self.blocked = self.blocked or f"{call.name!r} is 0 for the probed images: try others"
            return None
        functions, _ = depending_on([call.returned], self.functions[call.place :])
        order = -1
        for place, function in enumerate(functions):
            if not is_vector(function.output, *expected.shape):
                continue
            order += 1
            vector = function.output.reshape(expected.shape)
            if not is_close(vector, expected):
                continue
            try:
                tail = self._tail(function.output, functions[place + 1 :])
            except TapError as refusal:
                self.blocked = self.blocked or f"between the mean of {call.name!r} and the logits: {refusal}"
                continue
            error = float((vector.float() - expected.float()).abs().max())
            return _Head(expected.shape[1], error, order, tail, self._names(call, function))
        return None

    def _tail(self, pooled: Tensor, functions: list[Call]) -> Tail:
        """What leads from the vector to the logits; checked on it, with other vectors beside it."""
        tail = Tail(pooled, self.logits, functions, self.live)
        rows = pooled.reshape(len(pooled), -1)
        try:
            again = tail(torch.cat((rows, rows / 2)))
        except RuntimeError as error:
            raise TapError(f"the calls that lead there cannot be made with more vectors: {error}") from error
        if again.shape[0] != 2 * len(rows) or not is_close(again[: len(rows)], self.logits):
            raise TapError("the calls that lead there give other logits with other vectors beside")
        return tail

    def _names(self, call: _Call, pooling: Call) -> tuple[str, ...]:
        """Modules that were called after the pooling."""
        place = next(place for place, function in enumerate(self.functions) if function is pooling)
        return tuple(after.name for after in _changing([each for each in self.calls if each.place > place + 1]))

    def _patch(self, count: int) -> Any:
        """The patches of a transformer with at most `count` tokens, from the map that its embedding made."""
        return patch_of([call.returned for call in self.calls], count, self.image)


def is_vector(output: Any, batch: int, channels: int) -> bool:
    """Whether a function's output is one vector of so many channels for each image."""
    return isinstance(output, Tensor) and output.numel() == batch * channels and output.shape[:1] == (batch,)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is an `nn.Linear` or a 1 x 1 `nn.Conv2d` of every pixel."""
    if isinstance(module, nn.Conv2d):
        return is_linear(module) and module.kernel_size == (1, 1) and module.groups == 1 and module.stride == (1, 1)
    return isinstance(module, nn.Linear) and is_linear(module)


def is_close(first: Tensor, second: Tensor) -> bool:
    """Whether two ways to compute the same thing agree."""
    if first.shape != second.shape:
        return False
    tolerance = max(RELATIVE_ERROR.get(tensor.dtype, 1e-4) for tensor in (first, second))
    return bool((first - second).abs().max() <= tolerance * second.abs().max())


def _has_pixels(returned: Tensor | None, logits: Tensor) -> bool:
    """Whether an output may be a map of more than one pixel."""
    if returned is None or returned.ndim not in (3, 4) or returned.shape[0] != len(logits):
        return False
    return returned[0].numel() > max(returned.shape[1], returned.shape[-1])


def _changing(calls: list[_Call]) -> list[_Call]:
    """Those of modules without modules of their own, but for the harmless."""
    return [call for call in calls if not any(call.module.children()) and not isinstance(call.module, _HARMLESS)]


def _described(calls: list[_Call]) -> str:
    return ", ".join(f"{call.name!r} ({type(call.module).__name__})" for call in calls)


def _tensor(value: Any) -> Tensor | None:
    """The value, or the first of a tuple, where it is a floating-point tensor."""
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) and value.is_floating_point() else None
