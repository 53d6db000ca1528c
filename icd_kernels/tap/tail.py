"""From the pooled vector to the logits: the calls of a forward that lead there, and the same calls on other vectors.

While a model runs, every PyTorch function that depends on its map is noted. Those between the pooled vector and the
logits are the head, whatever modules, adapters or functions they came from: nothing is assumed of them, and what is the
identity in a fresh model (a neck's norm, an adapter) is part of it all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from icd_kernels.tap.errors import TapError

DROPOUTS = ("dropout", "dropout_", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_BATCH_NORM = inspect.signature(F.batch_norm)
RESHAPES = ("view", "reshape", "expand", "unflatten")
"""Functions whose first size is the batch's."""


class Call(NamedTuple):
    """One call of a PyTorch function."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    autocast: tuple[torch.dtype, bool]
    """That of the output's device where it was called."""

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class Recorder(TorchFunctionMode):
    """Notes calls: from entering on all of them, or from `begin` on those that depend on its tensor."""

    def __init__(self, *, everything: bool = False) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.live: dict[int, Tensor] | None = {} if everything else None
        """Tensors that depend on the map, by identity; None before there is one."""
        self.everything = everything
        self._is_on = False

    def begin(self, tensor: Tensor) -> None:
        """From now on what depends on `tensor` is noted, the map of its module's last call."""
        self.calls, self.live = [], {id(tensor): tensor}

    def begin_here(self, tensor: Tensor) -> None:
        """The same, and the recorder is on from now to `stop`: a forward's first layers are then called as ever."""
        self.begin(tensor)
        if not self._is_on:
            self._is_on = True
            self.__enter__()

    def stop(self) -> None:
        """Ends what `begin_here` has begun; no other mode may have been entered since that is not left."""
        if self._is_on:
            self._is_on = False
            self.__exit__(None, None, None)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if self.live is None:
            return output
        made = list(tensors_in(output))
        if made and (self.everything or any(id(given) in self.live for given in tensors_in((args, kwargs)))):
            device = made[0].device.type
            autocast = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
            self.calls.append(Call(function, args, kwargs, output, autocast))
            self.live.update((id(tensor), tensor) for tensor in made)
        return output


def function_modes() -> int:
    """How many modes such as a recorder are on in this thread."""
    return torch._C._len_torch_function_stack()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in arguments or outputs, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def depending_on(tensors: Sequence[Tensor], calls: list[Call]) -> tuple[list[Call], dict[int, Tensor]]:
    """Those of the calls that depend on the tensors, and every tensor that does, by identity."""
    live = {id(tensor): tensor for tensor in tensors}
    found = []
    for call in calls:
        if any(id(given) in live for given in tensors_in((call.args, call.kwargs))):
            found.append(call)
            live.update((id(made), made) for made in tensors_in(call.output))
    return found, live


class Tail:
    """The calls from a pooled vector to the logits: a head (M, C) → (M, K).

    Dropout is left out, as for a linear head. A BatchNorm in training mode takes the statistics that the network's own
    forward took. Autocast is on where it was on.
    """

    def __init__(self, pooled: Tensor, logits: Tensor, calls: list[Call], live: dict[int, Tensor]) -> None:
        """`calls`: those after the one that made `pooled`; `live`: every tensor that depends on the map.

        Raises:
            TapError: the logits depend on the map in another way too, or by what is no PyTorch function.
        """
        self.pooled = pooled
        self.logits = logits
        self.calls = _leading(pooled, logits, calls, live)

    def __call__(self, rows: Tensor) -> Tensor:
        """Logits (M, K) of vectors (M, C)."""
        batch = self.pooled.shape[0]
        vectors = rows.to(self.pooled.dtype).view(-1, *self.pooled.shape[1:])
        values = {id(self.pooled): vectors.clone() if any(map(_writes, self.calls)) else vectors}
        for call in self.calls:
            args, kwargs = _replaced((call.args, call.kwargs), values)
            if call.name in RESHAPES:
                args = _resized(args, batch, rows.shape[0])
            with torch.autocast(self.pooled.device.type, *call.autocast):
                output = _called(call, args, kwargs)
            _assign(values, call.output, output)
        return values[id(self.logits)]

    @property
    def linear(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias where one linear layer is all there is, dropout and reshaping aside."""
        acting = [call for call in self.calls if call.name not in (*DROPOUTS, *RESHAPES, "flatten", "squeeze")]
        if len(acting) != 1 or acting[0].name not in ("linear", "conv2d"):
            return None
        _, weight, *rest = (*acting[0].args, *acting[0].kwargs.values())
        if weight.ndim == 4 and (weight.shape[2:] != (1, 1) or weight.shape[1] != self.pooled.shape[1]):
            return None
        return weight.flatten(1), rest[0] if rest else None


def _writes(call: Call) -> bool:
    """Whether the call works in place."""
    return call.name.endswith("_") or bool(call.kwargs.get("inplace", False))


def _leading(pooled: Tensor, logits: Tensor, calls: list[Call], live: dict[int, Tensor]) -> list[Call]:
    """Those of the calls that the logits are made by."""
    needed, kept = {id(logits)}, []
    for call in reversed(calls):
        if any(id(tensor) in needed for tensor in tensors_in(call.output)):
            kept.append(call)
            needed.update(id(tensor) for tensor in tensors_in((call.args, call.kwargs)) if id(tensor) in live)
    kept.reverse()
    known = {id(pooled)}
    for call in kept:
        for tensor in tensors_in((call.args, call.kwargs)):
            if id(tensor) in live and id(tensor) not in known:
                raise TapError(f"the logits depend on more than the pooled vector: {call.name} is given another tensor")
        known.update(id(tensor) for tensor in tensors_in(call.output))
    if id(logits) not in known:
        raise TapError("the logits are not made of the pooled vector by PyTorch's functions alone")
    return kept


def _replaced(value: Any, values: dict[int, Any]) -> Any:
    """Arguments with the tensors of `values` in place of those of the recorded forward."""
    if isinstance(value, Tensor):
        return values.get(id(value), value)
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(item, values) for item in value)
    if isinstance(value, dict):
        return {name: _replaced(item, values) for name, item in value.items()}
    return value


def _assign(values: dict[int, Any], recorded: Any, output: Any) -> None:
    for before, now in zip(tensors_in(recorded), tensors_in(output), strict=True):
        values[id(before)] = now


def _resized(args: Any, batch: int, rows: int) -> Any:
    """Sizes with M in place of B, where they begin with it."""
    sizes = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else args[1:]
    if not sizes or sizes[0] != batch:
        return args
    return (args[0], rows, *sizes[1:])


def _called(call: Call, args: Any, kwargs: Any) -> Any:
    if call.name in DROPOUTS:
        return args[0]
    if call.function is F.batch_norm:
        given = _BATCH_NORM.bind(*args, **kwargs).arguments
        if given.get("training", False):
            return _with_batch_statistics(call.args[0], given)
    return call.function(*args, **kwargs)


def _with_batch_statistics(seen: Tensor, given: dict[str, Any]) -> Tensor:
    """A BatchNorm by the statistics of what the network's own forward gave it; running ones are not touched."""
    dims = [dim for dim in range(seen.ndim) if dim != 1]
    mean, variance = seen.mean(dims, keepdim=True), seen.var(dims, correction=0, keepdim=True)
    normal = (given["input"] - mean) * torch.rsqrt(variance + given.get("eps", 1e-5))
    weight, bias = given.get("weight"), given.get("bias")
    if weight is not None:
        normal = normal * weight.view(mean.shape)
    return normal if bias is None else normal + bias.view(mean.shape)
