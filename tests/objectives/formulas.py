"""Every base loss once more, straight from docs/objectives.md: Python loops over Python floats, no PyTorch.

Written apart from icd_kernels.objectives, like support/definition.py. A row is a list of K logits, `y` its true class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

Row = Sequence[float]
Matrix = list[list[float]]


def log_softmax(row: Row, temperature: float = 1.0) -> list[float]:
    scaled = [value / temperature for value in row]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(value - top) for value in scaled))
    return [value - log_sum for value in scaled]


def kl(teacher: Row, student: Row, temperature: float) -> float:
    """KL(teacher ‖ student) of the softened logits; 0 for fewer than two classes."""
    if not teacher:
        return 0.0
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def without(row: Row, y: int) -> list[float]:
    return [value for k, value in enumerate(row) if k != y]


def kd(student: Row, teacher: Row, y: int, temperature: float, **_: float) -> float:
    return temperature**2 * kl(teacher, student, temperature)


def dkd(student: Row, teacher: Row, y: int, temperature: float, alpha: float, beta: float, **_: float) -> float:
    target = kl(_true_and_rest(teacher, y, temperature), _true_and_rest(student, y, temperature), 1.0)
    others = kl(without(teacher, y), without(student, y), temperature)
    return temperature**2 * (alpha * target + beta * others)


def _true_and_rest(row: Row, y: int, temperature: float) -> list[float]:
    """Log-probabilities of the true class and of all others together."""
    log_p = log_softmax(row, temperature)
    rest = without(log_p, y)
    top = max(rest)
    return [log_p[y], top + math.log(sum(math.exp(value - top) for value in rest))]


def nkd(student: Row, teacher: Row, y: int, temperature: float, gamma: float, **_: float) -> float:
    target = math.exp(log_softmax(teacher)[y]) * log_softmax(student)[y]
    log_p, log_q = (log_softmax(without(row, y), temperature) for row in (teacher, student))
    others = sum(math.exp(p) * q for p, q in zip(log_p, log_q, strict=True))
    return -target - gamma * temperature**2 * others


def released_nkd(student: Row, teacher: Row, y: int, temperature: float, gamma: float, **_: float) -> float:
    """The mask of the other classes removes none."""
    target = math.exp(log_softmax(teacher)[y]) * log_softmax(student)[y]
    log_p, log_q = (log_softmax(row, temperature) for row in (teacher, student))
    return -target - gamma * temperature**2 * sum(math.exp(p) * q for p, q in zip(log_p, log_q, strict=True))


def released_dkd(
    student: Row, teacher: Row, y: int, temperature: float, alpha: float, beta: float, **_: float
) -> float:
    """Logarithms of probabilities, and the true class pushed down by 1000 instead of removed; NaN becomes 0."""
    pairs = []
    for row in (teacher, student):
        p = [math.exp(value) for value in log_softmax(row, temperature)]
        pairs.append((p[y], sum(without(p, y))))
    target = sum(_released_term(p, q) for p, q in zip(*pairs, strict=True))
    p, q = ([value / temperature - 1000.0 * (k == y) for k, value in enumerate(row)] for row in (teacher, student))
    loss = temperature**2 * (alpha * target + beta * kl(p, q, 1.0))
    return 0.0 if math.isnan(loss) else loss


def _released_term(p: float, q: float) -> float:
    """p (log p - log q) in floating point: log 0 is -inf, and 0·-inf is NaN, but 0 log 0 is 0 on the teacher's side."""
    entropy = p * math.log(p) if p > 0 else 0.0
    return entropy - p * (math.log(q) if q > 0 else -math.inf)


RowLoss = Callable[..., float]
ROWS: dict[str, RowLoss] = {"kd": kd, "dkd": dkd, "nkd": nkd}
RELEASED_ROWS: dict[str, RowLoss] = {"kd": kd, "dkd": released_dkd, "nkd": released_nkd}


def sdd(
    student: list[Matrix],
    teacher: list[Matrix],
    target: Sequence[int],
    base: str,
    complementary_weight: float,
    settings: dict[str, float],
    released: bool = False,
) -> list[float]:
    """Every image's mean over its regions, from logits [image][region][class]; region 0 is the whole image."""
    row_loss = (RELEASED_ROWS if released else ROWS)[base]
    losses = []
    for s, t, y in zip(student, teacher, target, strict=True):
        is_right = [row.index(max(row)) == y for row in t]
        total = 0.0
        for n in range(len(s)):
            weight = complementary_weight if is_right[n] != is_right[0] else 1.0
            total += weight * row_loss(s[n], t[n], y, **settings)
        losses.append(total / len(s))
    return losses


def sp(student: Matrix, teacher: Matrix) -> list[float]:
    """Every image's row of (G̃_T - G̃_S)², divided by B, from flattened maps [image][value]."""
    grams = []
    for maps in (student, teacher):
        gram = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in maps] for one in maps]
        grams.append([[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in gram])
    count = len(student)
    return [sum((t - s) ** 2 for s, t in zip(*rows, strict=True)) / count for rows in zip(*grams, strict=True)]


def ldrld(student: Row, teacher: Row, temperature: float, top_k: int, alpha: float, beta: float) -> float:
    order = sorted(range(len(student)), key=lambda k: -student[k])
    top, rest = order[:top_k], order[top_k:]

    def among(classes: Sequence[int]) -> float:
        return temperature**2 * kl([teacher[k] for k in classes], [student[k] for k in classes], temperature)

    total = among(top)
    for i, j in combinations(range(1, len(top) + 1), 2):
        total += 2 * math.exp(-0.05 * (i + j)) / (1.5 + abs(i - j)) * among((top[i - 1], top[j - 1]))
    return alpha * total / (math.comb(len(top), 2) + 1) + beta * among(rest)


def crd(
    student: Matrix, teacher: Matrix, student_memory: Matrix, teacher_memory: Matrix, columns: list[list[int]],
    temperature: float, z: tuple[float, float] | None,
) -> tuple[list[float], tuple[float, float]]:  # fmt: skip
    """Every image's loss from unit embeddings, and Z of both directions; columns: the image's row, then k others."""
    rows, count = len(student_memory), len(columns[0]) - 1
    scores = [
        [
            [math.exp(sum(a * b for a, b in zip(v, memory[c], strict=True)) / temperature) for c in row]
            for v, row in zip(embeddings, columns, strict=True)
        ]
        for embeddings, memory in ((student, teacher_memory), (teacher, student_memory))
    ]
    if z is None:
        z_s, z_t = (rows * sum(map(sum, side)) / (len(side) * len(side[0])) for side in scores)
        z = z_s, z_t
    losses = [0.0] * len(student)
    for side, normalizer in zip(scores, z, strict=True):
        for b, row in enumerate(side):
            p = [score / normalizer for score in row]
            losses[b] -= math.log(p[0] / (p[0] + count / rows))
            losses[b] -= sum(math.log((count / rows) / (value + count / rows)) for value in p[1:])
    return losses, z
