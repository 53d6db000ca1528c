"""Temperatures: a number, a tensor that is learnt, or a schedule over the epochs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from icd_kernels.options import check_temperature

Temperature = float | Tensor | Callable[[float], float]
"""A number above 0, an `nn.Parameter` of shape (), or a function from the epoch to a number."""


def check_temperature_option(temperature: Temperature) -> Temperature:
    """A temperature of any of the three kinds.

    Raises:
        TypeError, ValueError: it is none of them.
    """
    if isinstance(temperature, Tensor):
        if not temperature.is_floating_point() or temperature.ndim != 0:
            raise ValueError(
                "temperature must be a number, a floating tensor of shape () or a function of the epoch, "
                f"got {temperature.dtype} {tuple(temperature.shape)}"
            )
        return temperature
    return temperature if callable(temperature) else check_temperature(temperature)


class CurrentTemperature(nn.Module):
    """The temperature of an epoch. An `nn.Parameter` is one of this module's, and so of the objective's."""

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.temperature = temperature

    @property
    def is_fixed(self) -> bool:
        """Whether it is the same number at every call."""
        return isinstance(self.temperature, float)

    def forward(self, epoch: float | None) -> float | Tensor:
        temperature = self.temperature
        if isinstance(temperature, (float, Tensor)):
            return temperature
        if epoch is None:
            raise TypeError("epoch must be given: temperature is a function of it")
        return check_temperature(temperature(epoch))

    def check(self) -> None:
        """Raises ValueError where a tensor is not above 0; waits for its device."""
        if isinstance(self.temperature, Tensor):
            check_temperature(float(self.temperature.detach()))


def softened(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits over the temperature, in their own dtype."""
    if isinstance(temperature, Tensor):
        temperature = temperature.to(logits.dtype)
    return logits / temperature


def squared(temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """T², in the dtype of `like` where it is a tensor."""
    if isinstance(temperature, Tensor):
        return torch.square(temperature.to(like.dtype))
    return temperature**2
