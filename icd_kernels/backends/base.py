"""What a backend is: a name, a predicate, and its computations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from icd_kernels import autograd


class BackendUnavailableError(ImportError):
    """A backend was asked for by name and is not usable here; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Backend:
    """One way of computing the loss. Its computations take checked arguments: those of backends/reference.py."""

    name: str
    device_types: tuple[str, ...] | None
    """The devices it runs on; None is any."""
    missing: str | None
    """What is missing here and how to get it; None where the backend is usable."""
    icd_loss: Callable[..., Tensor]
    region_features: Callable[..., Tensor]
    region_logits: Callable[..., Tensor]
    gram_kl: Callable[..., Tensor]
    only_by_name: tuple[str, ...] = ()
    """Devices of `device_types` on which "auto" does not take it."""
    row_losses: Callable[..., Tensor] | None = None
    """KD, DKD and NKD of logit rows in one operator; None where the objectives take PyTorch's operations."""

    def can_run(self, device_type: str, *, raise_error: bool = False) -> bool:
        """Whether it runs tensors on `device_type` here. With `raise_error`, it raises the reason where it cannot."""
        if self.missing is not None:
            if raise_error:
                raise BackendUnavailableError(f"backend {self.name!r} is not available: {self.missing}")
            return False
        if self.device_types is not None and device_type not in self.device_types:
            if raise_error:
                raise ValueError(f"backend {self.name!r} runs on {self.device_types}, got tensors on {device_type!r}")
            return False
        return True


def operator_backend(
    name: str,
    device_types: tuple[str, ...],
    missing: str | None,
    operators: str,
    only_by_name: tuple[str, ...] = (),
    *,
    has_row_losses: bool = False,
) -> Backend:
    """A compiled backend: the operators of one namespace (:mod:`icd_kernels.operators`) under autograd."""
    return Backend(
        name=name,
        device_types=device_types,
        missing=missing,
        icd_loss=partial(autograd.icd_loss, operators),
        region_features=partial(autograd.region_features, operators),
        region_logits=partial(autograd.region_logits, operators),
        gram_kl=partial(autograd.gram_kl, operators),
        only_by_name=only_by_name,
        row_losses=partial(autograd.row_losses, operators) if has_row_losses else None,
    )
