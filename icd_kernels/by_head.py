"""Local logits of any head: the head applied to the mean features of every region, z(m, n) = head(f̄(m, n))."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from icd_kernels.backends import Backend
from icd_kernels.checks import check_map, check_network
from icd_kernels.heads import Head, apply_head, head_parameters, is_linear


def logits_by_head(
    features: Tensor, head: Head, scales: tuple[int, ...], pyramid: str, backend: Backend, name: str
) -> Tensor:
    """(B, K, N) of one network, whose arguments errors call `name`, an underscore and a word; or the word alone.

    A linear head is one product with the regions' means. Any other runs in PyTorch on M = B·N rows.
    """
    prefix = f"{name}_" if name else ""
    if is_linear(head):
        weight, bias = head_parameters(head, f"{prefix}head")
        check_network(features, weight, bias, prefix)
        return backend.region_logits(features, weight, bias, scales, pyramid)
    head_function: Any = head
    check_map(features, f"{prefix}features")
    rows = backend.region_features(features, scales, pyramid)  # [B, N, C]
    logits = apply_head(head_function, rows.flatten(0, 1), f"{prefix}head")  # [B·N, K]
    return logits.unflatten(0, rows.shape[:2]).transpose(1, 2)
