"""Counting what PyTorch dispatches: operations that do work, and values the host waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HOST_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operations whose result the host needs: `.item()`, `if tensor`, and sizes that depend on data."""


class Counts(NamedTuple):
    """Of one call."""

    operations: int
    """Dispatched operations that are no views."""
    syncs: int
    """How often the host waits for the device (on a CPU: would have to, were it a GPU)."""


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.name() != "aten::detach":
            self.names.append(func.name())
        name = func.name().split(".")[0]
        self.syncs += name in HOST_READS or (name in ("aten::index", "aten::index_put_") and _has_mask(func, args))
        return func(*args, **(kwargs or {}))


def _has_mask(func: Any, args: Any) -> bool:
    """Whether a boolean mask picks elements: its size has to be known. Filling by a mask needs no size."""
    is_filled = func.name() == "aten::index_put_" and args[2].numel() == 1
    return not is_filled and any(index is not None and index.dtype == torch.bool for index in args[1])


def count(function: Callable[[], Any]) -> Counts:
    """What one call of `function` dispatches."""
    with _Counter() as counter:
        function()
    return Counts(len(counter.names), counter.syncs)
