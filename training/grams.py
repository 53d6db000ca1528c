"""The figure of Gram matrices: the teacher's, and the student's before training and after each method."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor
from torch.nn import functional as F

from icd_kernels import ICDLoss, gram_kl
from icd_kernels.options import NORM_FLOOR, normalization
from training.figure_file import write_figure

SHOWN_CLASS = 8
"""The class and spatial forms show the first test image of this class, or of the last probed; the sample form all."""

TITLES = {"teacher": "teacher", "before": "student\nbefore training"}
ENTRIES = {"class": "class", "spatial": "cell, row by row", "sample": "test image, by class"}


def write_grams(path: Path, probes: dict[str, Tensor], images: Tensor, labels: Tensor, icd: ICDLoss) -> None:
    """One row a scale, one column a network, one colour scale for all.

    Args:
        path: the PNG.
        probes: local logits (n, K, N) of the probe images by "teacher", "before" and method.
        images: the probe images, (n, C, H, W).
        labels: their classes, (n,).
        icd: the loss whose Gram matrices these are.
    """
    rows = slice(None)
    if icd.options.gram != "sample":
        first = int((labels == min(SHOWN_CLASS, int(labels.max()))).nonzero()[0])
        rows = slice(first, first + 1)
    names = [*TITLES, *(name for name in probes if name not in TITLES)]
    cells = [scale * scale for scale in icd.options.scales]
    logits = {name: probes[name][rows].split(cells, dim=2) for name in names}  # by scale, each (n, K, m²)
    grams = {name: [_gram(of_scale, icd) for of_scale in logits[name]] for name in names}
    limit = max(float(gram.abs().max()) for gram in grams["teacher"])

    figure = Figure(figsize=(2.3 * (len(names) + 1) + 1, 2.75 * len(cells) + 0.7), layout="constrained")
    panels = figure.subplots(len(cells), len(names) + 1, squeeze=False)
    for row, scale in enumerate(icd.options.scales):
        _draw_image(panels[row, 0], images[rows][0], scale)
        for axes, name in zip(panels[row, 1:], names, strict=True):
            drawn = _draw_gram(axes, grams[name][row], limit)
            lines = [ENTRIES[icd.options.gram], f"largest |entry| {float(grams[name][row].abs().max()):.3g}"]
            if name != "teacher":
                loss = _loss_of_scale(logits[name][row], logits["teacher"][row], scale, icd)
                lines.append(f"iCD of this scale {loss:.3g}")
            axes.set_xlabel("\n".join(lines), fontsize=8)
            if row == 0:
                axes.set_title(TITLES.get(name, f"student after training\n{name}"), fontsize=10)
    label = f"Gram entry (normalize: {icd.options.normalize}); the teacher's range, beyond it clipped"
    figure.colorbar(drawn, ax=panels, shrink=0.7, extend="both", label=label)
    panels[0, 0].set_title("test image" if rows != slice(None) else "first of the\ntest images", fontsize=10)
    figure.suptitle(_title(icd))
    write_figure(figure, path)


def _gram(logits: Tensor, icd: ICDLoss) -> Tensor:
    """The mean over the cells, where there is a Gram matrix for each. (n, K, m²) -> (K, K), (m², m²) or (n, n)"""
    z = _normalized(logits, icd.options.normalize)
    if icd.options.gram == "spatial":
        return z[0].T @ z[0]
    if icd.options.gram == "class":
        return z[0] @ z[0].T / z.shape[2]
    return torch.einsum("bkn,ckn->bc", z, z) / z.shape[2]


def _normalized(logits: Tensor, normalize: str) -> Tensor:
    centre, spread = normalization(normalize, logits.shape[1])
    centred = logits - centre * logits.mean(dim=1, keepdim=True)
    return centred if spread == 0 else F.normalize(centred, dim=1, eps=NORM_FLOOR) / spread


def _loss_of_scale(student: Tensor, teacher: Tensor, scale: int, icd: ICDLoss) -> float:
    options = {**icd.options._asdict(), "scales": (scale,), "scale_weights": None, "backend": "reference"}
    del options["pyramid"]  # the logits are there already
    return float(gram_kl(student, teacher, **options))


def _draw_image(axes: Axes, image: Tensor, scale: int) -> None:
    """An image (C, H, W) with the scale's cells."""
    _, height, width = image.shape
    shown = image[0] if len(image) == 1 else ((image - image.min()) / (image.max() - image.min())).permute(1, 2, 0)
    axes.imshow(shown, cmap="gray", extent=(0, width, height, 0))
    for line in range(1, scale):
        axes.axhline(line * height / scale, color="#ffb000", linewidth=1)
        axes.axvline(line * width / scale, color="#ffb000", linewidth=1)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"scale {scale}: {scale * scale} cell{'s' if scale > 1 else ''}", fontsize=8)


def _draw_gram(axes: Axes, gram: Tensor, limit: float) -> AxesImage:
    drawn = axes.imshow(gram, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ticks = range(0, len(gram), max(1, len(gram) // 5))
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=7)
    return drawn


def _title(icd: ICDLoss) -> str:
    what = {
        "class": "class Gram matrices z zᵀ of one test image (mean over the scale's cells)",
        "spatial": "spatial Gram matrices Zᵀ Z of one test image",
        "sample": "sample Gram matrices Z Zᵀ of some test images (mean over the scale's cells)",
    }
    return f"Teacher and student: {what[icd.options.gram]}; first seed"
