"""A model and the map behind its logits, without a hook in the user's script."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from icd_kernels.heads import Head
from icd_kernels.network import NetworkOutput
from icd_kernels.options import check_choice
from icd_kernels.tap.compiled import CompiledHook, is_compiled
from icd_kernels.tap.errors import TapError
from icd_kernels.tap.search import Found, find, is_plain_linear, is_vector, logits_of
from icd_kernels.tap.tail import Recorder, Tail

TOKENS = ("mean", "patches")
NO_HISTORY = (
    "the map has no history though the vector that is pooled from it has one, as inside torch.utils.checkpoint with "
    "use_reentrant=True: pass use_reentrant=False"
)


class FeatureTap:
    """Runs a model and gives what distillation reads: logits, the map that is pooled, and the head of its mean.

    Use it in place of the model::

        teacher_tap, student_tap = FeatureTap(teacher), FeatureTap(student)
        with torch.no_grad():
            teacher_out = teacher_tap(images)
        objective(student_tap(images), teacher_out, labels).total.backward()

    The first call looks for the map by one more forward of two images in eval mode. Every forward notes the calls that
    lead from the pooled vector to the logits; they are the head, whatever stands there: a linear layer, norms, hidden
    layers, adapters, two heads that are averaged. Where it is one linear layer, the head is that layer, or its (weight,
    bias). It takes torchvision's, timm's and Hugging Face's models, models that return (logits, more), a map laid out
    (B, H, W, C), and transformers that average their patch tokens. One that reads a class token or pools in another way
    is refused with the reason.

    A model wrapped in DDP or nn.DataParallel of one device is looked into and called through its wrapper. So is a model
    under `torch.compile`, if it has not run yet when it is tapped: give `sample` then, or tap it before compiling. Only
    the probe looks into a compiled model: parts of its head that are replaced later are not seen.

    Args:
        model: returns logits (B, K), or a tuple, dict or object that begins with them ("logits").
        sample: images (B, 3, H, W) to look at now rather than at the first call.
        tokens: "mean", or "patches" to take the mean of the patch tokens through the head of a model that reads its
            class token: a choice that the model's authors did not make.

    Raises:
        TypeError: `model` is no module, or `sample` no tensor.
        TapError: (a ValueError) the model's logits are not a function of the mean of a map.
    """

    def __init__(self, model: nn.Module, sample: Tensor | None = None, *, tokens: str = "mean") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError("model must not be nn.DataParallel over several devices: use DistributedDataParallel")
        self.model = model
        self.tokens = check_choice("tokens", tokens, TOKENS)
        self.found: Found | None = None
        self._compiled: CompiledHook | None = None
        self._heads: dict[int, nn.Module] = {}
        if sample is not None:
            self.probe(sample)

    def probe(self, images: Tensor, **kwargs: Any) -> Found:
        """Looks for the map and for what leads from it to the logits. `kwargs`: further inputs of the model."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor (B, 3, H, W), got {type(images).__name__}")
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must have shape (B, 3, H, W) with B of 1 or more, got {tuple(images.shape)}")
        self.close()
        inner = unwrapped(self.model)
        found = find(inner, images, kwargs, self.tokens)
        if is_compiled(self.model):
            self._compiled = CompiledHook(inner.get_submodule(found.map_name), found.reads_input)
        else:
            found = found._replace(tail=None)  # every forward has its own
        self.found = found
        return found

    def __call__(self, images: Tensor, **kwargs: Any) -> NetworkOutput:
        """Logits (B, K), map (B, C, H, W) and head of the model on `images`, with their history.

        Args:
            images: (B, 3, H, W), the model's first input.
            kwargs: its further ones.

        Raises:
            TapError: the model no longer does what it did, and cannot be tapped as it is now.
            RuntimeError: the map was not seen, or has no history where the logits have one; the message says why.
        """
        check_same_gpu(images.device, next((each.device for each in self.model.parameters()), images.device))
        found = self.found if self.found is not None else self.probe(images, **kwargs)
        image = (images.shape[-2], images.shape[-1])
        if self._compiled is not None:
            with self._compiled as read:
                logits = logits_of(self.model(images, **kwargs))
                features = read()
            return NetworkOutput(logits, found.view(features, image), self._frozen_head(found))
        forward = self._forward(found, images, kwargs)
        if forward is None:  # the model has changed: look again
            found = self.probe(images, **kwargs)
            forward = self._forward(found, images, kwargs)
        if forward is None:
            raise RuntimeError(f"the forward did not pass {found.map_name!r}, where the probe found the map")
        logits, features, head = forward
        return NetworkOutput(logits, found.view(features, image), head)

    def _forward(self, found: Found, images: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Head] | None:
        """Logits, the module's output and the head; None where the model no longer passes the module."""
        inner = unwrapped(self.model)
        try:
            module = inner.get_submodule(found.map_name)
        except AttributeError:
            return None
        recorder, seen = Recorder(), _Seen()
        with ExitStack() as hooks:
            if found.is_within_mode:
                hooks.enter_context(recorder)
            seen.watch(hooks, inner, module, found, recorder)
            logits = logits_of(self.model(images, **kwargs))
        if seen.map is None:
            return None
        if found.reads_input:
            return (logits, seen.map, module) if is_plain_linear(module) else None
        own_logits = logits if seen.output is None else logits_of(seen.output)
        is_cut = own_logits.requires_grad and not seen.map.requires_grad
        try:
            tail = _tail(found, recorder, own_logits)
        except TapError as error:
            if is_cut:
                raise RuntimeError(NO_HISTORY) from error
            raise
        if tail is None:
            return None
        if is_cut and tail.pooled.requires_grad:
            raise RuntimeError(NO_HISTORY)
        linear = tail.linear
        return logits, seen.map, tail if linear is None else self._module_of(linear)

    def _module_of(self, linear: tuple[Tensor, Tensor | None]) -> Head:
        """The linear module that these weight and bias are of, or they themselves."""
        weight, bias = linear
        key = weight.data_ptr()
        module = self._heads.get(key)
        if module is None or not _has(module, weight, bias):
            every = (each for each in self.model.modules() if is_plain_linear(each) and _has(each, weight, bias))
            module = next(every, None)
            self._heads = {} if module is None else {key: module}
        return linear if module is None else module

    def _frozen_head(self, found: Found) -> Head:
        """Of a compiled model, by the probe."""
        if found.reads_input:
            return unwrapped(self.model).get_submodule(found.map_name)
        assert found.tail is not None
        linear = found.tail.linear
        return found.tail if linear is None else self._module_of(linear)

    def close(self) -> None:
        """Forgets what the probe found; a compiled model's hook is taken off."""
        if self._compiled is not None:
            self._compiled.remove()
        self._compiled, self.found, self._heads = None, None, {}

    def __enter__(self) -> FeatureTap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "not looked at yet"
        if self.found is not None:
            where = f"{self.found.map_name!r} ({self.found.view}) → {', '.join(self.found.tail_names) or 'the logits'}"
        return f"FeatureTap({type(unwrapped(self.model)).__name__}: {where})"


class _Seen:
    """What one forward passed, in this thread; others may run the same model meanwhile."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.map: Tensor | None = None
        self.output: Any = None

    def watch(self, hooks: ExitStack, model: nn.Module, module: nn.Module, found: Found, recorder: Recorder) -> None:
        """Hooks for the time of a forward: none stays in the model, to be copied or saved with it."""
        begin = recorder.begin if found.is_within_mode else recorder.begin_here

        def keep(_module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
            if threading.get_ident() == self.thread:
                value = given if found.reads_input else returned
                self.map = value[0] if isinstance(value, (tuple, list)) else value
                begin(self.map)

        def end(_module: nn.Module, _given: tuple[Any, ...], returned: Any) -> None:
            if threading.get_ident() == self.thread:
                self.output = returned
                recorder.stop()

        hooks.callback(recorder.stop)
        hooks.callback(module.register_forward_hook(keep).remove)
        hooks.callback(model.register_forward_hook(end).remove)


def _has(module: nn.Module, weight: Tensor, bias: Tensor | None) -> bool:
    own: Any = module
    same_weight = own.weight is weight or (
        own.weight.data_ptr() == weight.data_ptr() and weight.numel() == own.weight.numel()
    )
    return same_weight and own.bias is bias


def _tail(found: Found, recorder: Recorder, logits: Tensor) -> Tail | None:
    """What led from the pooled vector to the logits; None where no vector was made of the map."""
    vectors = [
        place for place, call in enumerate(recorder.calls) if is_vector(call.output, len(logits), found.channels)
    ]
    if len(vectors) <= found.order:
        return None
    place = vectors[found.order]
    return Tail(recorder.calls[place].output, logits, recorder.calls[place + 1 :], recorder.live or {})


def check_same_gpu(images: torch.device, model: torch.device) -> None:
    """Raises ValueError where images lie on another GPU than the model: in a replica of nn.DataParallel."""
    if images.type == model.type == "cuda" and images.index != model.index:
        raise ValueError(
            f"images are on {images} and the tapped model on {model}: inside nn.DataParallel a tap would run the "
            "original, not its replica; use DistributedDataParallel, with the tap around it"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's, DDP's and nn.DataParallel's wrappers."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's, whose class is slow to import
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model
