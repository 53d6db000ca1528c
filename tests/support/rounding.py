"""How large the terms of a result are before they cancel: what one rounding of each of them can amount to.

A loss is a sum of KLs, each a difference of logarithms; its gradient is a sum over D = Q - P, a difference of
probabilities; both can be far smaller than what was rounded on the way. These are the same sums with every term taken
by its absolute value and a Gram entry's rounding (relative to its row's largest, in units of τ) beside every
probability, all in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from icd_kernels import region_logits
from icd_kernels.options import NORM_FLOOR, normalization, rank_weights


def region_logits_terms(
    features: Tensor, weight: Tensor, bias: Tensor | None, *, cotangent: Tensor, **options: Any
) -> dict[str, Tensor]:
    """Terms of the local logits and of their gradients for an upstream gradient `cotangent`."""
    leaves = {"features": features, "weight": weight, "bias": bias}
    leaves = {name: None if x is None else x.detach().double().abs().requires_grad_() for name, x in leaves.items()}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    result = region_logits(leaves["features"], leaves["weight"], leaves["bias"], backend="reference", **options)  # type: ignore[arg-type]
    gradients = torch.autograd.grad(result, list(wanted.values()), cotangent.abs().to(result))
    return {"result": result.detach(), **dict(zip(wanted, gradients, strict=True))}


def gram_kl_terms(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    cotangent: Tensor,
    scales: tuple[int, ...] = (1, 2, 4),
    gram: str = "class",
    normalize: str = "none",
    temperature: float = 4.0,
    scale_weights: tuple[float, ...] | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Terms of the loss (B,) or (), and of its gradient by the student's logits (B, K, N)."""
    z_s, z_t = student_logits.detach().double().transpose(1, 2), teacher_logits.detach().double().transpose(1, 2)
    s, s_size = _normalized(z_s, normalize)  # [B, N, K], [B, N, 1]
    t, _ = _normalized(z_t, normalize)
    batch = s.shape[0]
    upstream = cotangent.detach().double().abs().expand(batch) / (batch if reduction == "mean" else 1)
    losses, gradients = s.new_zeros(batch), []
    cells = [scale * scale for scale in scales]
    weights = scale_weights or rank_weights(len(scales))
    for w, count, x, y in zip(weights, cells, s.split(cells, 1), t.split(cells, 1), strict=True):
        q, s_top = _softmax_terms(_gram(x, gram), temperature)
        p, t_top = _softmax_terms(_gram(y, gram), temperature)
        row_weight = w * upstream[:, None, None] / (1 if gram == "spatial" else count)  # [B, 1, 1]
        rows = w / (1 if gram == "spatial" else count) * (1 + s_top + t_top)
        gradients.append(_product(q + p, x.abs(), row_weight, gram) / temperature)
        losses = losses + (rows.sum(0) if gram == "sample" else rows.flatten(1).sum(1))
    d = torch.cat(gradients, 1)
    centre, spread = normalization(normalize, s.shape[2])
    along = spread**2 * s.abs() * (s.abs() * d).sum(2, keepdim=True)
    d = (d + centre * d.mean(2, keepdim=True) + along) / s_size
    if reduction != "none":
        losses = losses.mean() if reduction == "mean" else losses.sum()
    return losses, d.transpose(1, 2)


def _normalized(z: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    centre, spread = normalization(normalize, z.shape[2])
    z = z - centre * z.mean(2, keepdim=True)
    if spread == 0:
        return z, torch.ones_like(z[..., :1])
    size = (spread * torch.linalg.vector_norm(z, dim=2, keepdim=True)).clamp_min(NORM_FLOOR)
    return z / size, size


def _gram(z: Tensor, gram: str) -> Tensor:
    """class [B, n, K, K], spatial [B, n, n], sample [n, B, B]; rows are the last dimension but one."""
    if gram == "class":
        return z.unsqueeze(3) * z.unsqueeze(2)
    if gram == "spatial":
        return z @ z.transpose(1, 2)
    z = z.transpose(0, 1)
    return z @ z.transpose(1, 2)


def _softmax_terms(gram: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Row softmax times one plus the row's largest |G/τ|, and that largest (.., rows)."""
    top = gram.abs().amax(-1) / temperature
    return torch.softmax(gram / temperature, -1) * (1 + top.unsqueeze(-1)), top


def _product(d: Tensor, z: Tensor, row_weight: Tensor, gram: str) -> Tensor:
    """(D + D^T) z with every row of D weighted; [B, n, K] like z."""
    if gram == "class":
        d = d * row_weight.unsqueeze(3)
        return torch.einsum("bnkl,bnl->bnk", d + d.transpose(2, 3), z)
    if gram == "spatial":
        d = d * row_weight
        return (d + d.transpose(1, 2)) @ z
    d = d * row_weight[:, 0]
    return ((d + d.transpose(1, 2)) @ z.transpose(0, 1)).transpose(0, 1)
