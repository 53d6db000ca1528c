"""Whether a tensor's values can be read without waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def is_on_host(tensor: Tensor) -> bool:
    """Whether reading `tensor` costs no wait."""
    return tensor.device.type == "cpu" and is_readable()


def is_readable() -> bool:
    """Whether tensors have values here: not where they are traced or mapped over."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
