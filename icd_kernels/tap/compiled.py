"""Models under torch.compile: their forwards cannot be looked into, so one hook stays in them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, runs by torch.compile."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


class CompiledHook:
    """Keeps what a module gave (or was given) during one forward; `with hook as read: ..; read()`.

    torch.compile traces the hook with the module, so it must be there before the model first runs.
    """

    def __init__(self, module: nn.Module, reads_input: bool) -> None:
        self._kept = _Kept(reads_input)
        self._handle = module.register_forward_hook(self._kept)

    def remove(self) -> None:
        """Takes the hook off the module."""
        self._handle.remove()

    def __enter__(self) -> Callable[[], Tensor]:
        self._kept.value, self._kept.is_reading = None, True
        return self._read

    def _read(self) -> Tensor:
        if self._kept.value is None:
            raise RuntimeError("the compiled forward did not pass the tapped module: tap a model before it has run")
        return self._kept.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.value, self._kept.is_reading = None, False


class _Kept:
    """The hook. A copy of the model, or a file of it, holds one that keeps nothing."""

    def __init__(self, reads_input: bool) -> None:
        self.reads_input = reads_input
        self.is_reading = False
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        if self.is_reading:
            value = given if self.reads_input else returned
            self.value = value[0] if isinstance(value, (tuple, list)) else value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept(self.reads_input)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, (self.reads_input,)
