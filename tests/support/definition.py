"""The loss once more, straight from its definition: Python loops over Python floats, no PyTorch, no vectorisation.

Slow and written apart from icd_kernels, so that an error in the reference does not hide behind itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Grid = list[list[float]]
"""One channel of one image, [row][column]."""
Matrix = list[list[float]]


def local_logits(
    features: list[list[Grid]], weight: Matrix, bias: list[float] | None, scales: Sequence[int], pyramid: str
) -> list[Matrix]:
    """[image][region][class]: W f̄ + b of every region, scale by scale, cells row-major."""
    logits = []
    for image in features:
        maps = image if pyramid == "adaptive" else [pooled(channel, max(scales)) for channel in image]
        regions = []
        for scale in scales:
            grids = [pooled(channel, scale) for channel in maps]
            for i in range(scale):
                for j in range(scale):
                    mean_feature = [grid[i][j] for grid in grids]
                    regions.append(
                        [
                            sum(w * f for w, f in zip(row, mean_feature, strict=True)) + (bias[k] if bias else 0.0)
                            for k, row in enumerate(weight)
                        ]
                    )
        logits.append(regions)
    return logits


def pooled(grid: Grid, scale: int) -> Grid:
    """Cell (i, j) is the mean over rows floor(i H/m) .. ceil((i+1) H/m), and likewise over columns."""
    height, width = len(grid), len(grid[0])
    cells = []
    for i in range(scale):
        rows = range(math.floor(i * height / scale), math.ceil((i + 1) * height / scale))
        line = []
        for j in range(scale):
            columns = range(math.floor(j * width / scale), math.ceil((j + 1) * width / scale))
            window = [grid[row][column] for row in rows for column in columns]
            line.append(sum(window) / len(window))
        cells.append(line)
    return cells


def per_image_loss(
    student: list[Matrix],
    teacher: list[Matrix],
    scales: Sequence[int],
    scale_weights: Sequence[float],
    gram: str,
    normalize: str,
    temperature: float,
) -> list[float]:
    """l_b of every image, from the local logits [image][region][class] of both networks."""
    student = [[normalized(z, normalize) for z in image] for image in student]
    teacher = [[normalized(z, normalize) for z in image] for image in teacher]
    losses = [0.0] * len(student)
    start = 0
    for scale, scale_weight in zip(scales, scale_weights, strict=True):
        regions = range(start, start + scale * scale)
        start += scale * scale
        for b in range(len(student)):
            rows = _rows_of_image(student, b, regions, gram), _rows_of_image(teacher, b, regions, gram)
            total = sum(row_kl(p, q, temperature) for q, p in zip(*rows, strict=True))
            matrices = 1 if gram == "spatial" else scale * scale
            losses[b] += scale_weight * total / matrices
    return losses


def _rows_of_image(logits: list[Matrix], b: int, regions: range, gram: str) -> Matrix:
    """The rows of every Gram matrix of a scale that belong to image b."""
    if gram == "class":  # G_kl = z_k z_l, K x K for every region: all rows
        return [[left * right for right in logits[b][n]] for n in regions for left in logits[b][n]]
    if gram == "spatial":  # G_mn = <z_m, z_n>, regions x regions: all rows
        return [[dot(logits[b][m], logits[b][n]) for n in regions] for m in regions]
    # "sample": G_bc = <z_b, z_c>, B x B for every region: row b
    return [[dot(logits[b][n], other[n]) for other in logits] for n in regions]


def normalized(z: list[float], normalize: str) -> list[float]:
    if normalize == "l2":
        norm = max(math.sqrt(dot(z, z)), 1e-12)
        return [value / norm for value in z]
    if normalize == "zscore":
        mean = sum(z) / len(z)
        deviation = max(math.sqrt(sum((value - mean) ** 2 for value in z) / len(z)), 1e-12)
        return [(value - mean) / deviation for value in z]
    if normalize == "center":
        mean = sum(z) / len(z)
        return [value - mean for value in z]
    assert normalize == "none", normalize
    return z


def row_kl(teacher_row: list[float], student_row: list[float], temperature: float) -> float:
    """KL(softmax(teacher/τ) ‖ softmax(student/τ)), natural log."""
    p, q = softmax(teacher_row, temperature), softmax(student_row, temperature)
    return sum(p_j * math.log(p_j / q_j) for p_j, q_j in zip(p, q, strict=True) if p_j > 0)


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    total = sum(powers)
    return [power / total for power in powers]


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
