"""What the Gram stage of the Triton backend loads and stores (`icd_kernels/backends/triton/gram_stage.py` and below).

Norms of "none" are 1, losses are one number for a matrix: small beside the logits, and counted all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.accesses import (
    DZ,
    EVERY_DZ,
    NODES,
    SAME_ADDRESS,
    Access,
    ExactSum,
    LinearSum,
    PairsAgain,
    Problem,
    Sums,
    loads,
    stores,
)
from icd_kernels.backends.triton import linear_class
from icd_kernels.backends.triton.plan import GramPlan, ceil_div
from icd_kernels.backends.triton.structs import Form
from icd_kernels.geometry import window

NODE_BLOCK: int = linear_class.NODE_BLOCK.value
POINT_BLOCK: int = linear_class.POINT_BLOCK.value


def gram(problem: Problem, plan: GramPlan, sums: Sums) -> Iterator[Access]:
    """`gram_task`, and `reduce_losses` of the last program.

    Raises:
        ValueError: gram is "sample", which no workload has and is not accounted for.
    """
    form = plan.form
    if form.GRAM == "sample":
        raise ValueError(f"gram must be 'class' or 'spatial', which are accounted for, got {problem.options.gram!r}")
    gradient = EVERY_DZ if form.FINEST else DZ
    if form.RESIDENT:
        yield from resident_gram(problem, form, gradient)
    else:
        for name, constants in (("teacher", form.TEACHER), ("student", form.STUDENT)):
            yield from assemble(problem, name, constants.FINEST, constants.SPLITS, form)
        if form.GRAM == "class":
            yield from class_gram(problem, form, gradient, sums)
        else:
            yield from spatial_gram(problem, form, gradient, sums)
        yield from unnormalize(problem, form, gradient)
    unused = sum(scale * scale for scale, weight in zip(form.SCALES, form.WEIGHTS, strict=True) if weight == 0)
    yield stores("scales of weight 0", gradient, problem.batch * unused * problem.classes, problem.dtype)
    yield from finish(problem, plan)


def used_scales(form: Form) -> list[int]:
    return [scale for scale, weight in zip(form.SCALES, form.WEIGHTS, strict=True) if weight > 0]


def used_rows(problem: Problem, form: Form) -> int:
    """Cells of all images, without those of weight 0."""
    return problem.batch * sum(scale * scale for scale in used_scales(form))


def covered(scale: int, finest: int) -> int:
    """Cells of the finest grid that all cells of a scale cover, each counted as often as it is covered."""
    spans = (window(index, scale, finest) for index in range(scale))
    return sum(stop - start for start, stop in spans) ** 2


def assemble(problem: Problem, name: str, finest: int, splits: int, form: Form) -> Iterator[Access]:
    """`assemble_rows`: the parts of the projected logits of every cell, as means over the finest grid where it is all
    there is; then a pass over the result for the norm of "zscore", and another to divide by it."""
    cells = sum(covered(scale, finest) if finest else scale * scale for scale in used_scales(form))
    written = used_rows(problem, form) * problem.classes
    passes = {"none": 0, "l2": 1, "zscore": 2}[form.NORMALIZE]
    read = problem.batch * cells * splits * problem.classes
    yield loads("logits", f"{name}'s projected logits", read, problem.dtype)
    yield loads("logits", f"{name}'s logits", passes * written, problem.dtype)
    yield stores("logits", f"{name}'s logits", (1 + (passes > 0)) * written, problem.dtype)


def unnormalize(problem: Problem, form: Form, gradient: str) -> Iterator[Access]:
    """`unnormalize_gradient_rows`: two passes over dl/dz and the logits; the second writes dl/dz."""
    if form.NORMALIZE != "none":
        elements = used_rows(problem, form) * problem.classes
        yield loads("gradient", gradient, 2 * elements, problem.dtype)
        yield loads("gradient", "student's logits", 2 * elements, problem.dtype)
        yield stores("gradient", gradient, elements, problem.dtype)


def finish(problem: Problem, plan: GramPlan) -> Iterator[Access]:
    """`_finish_images` and `reduce_losses`: losses summed up, dl/dz of every cell folded onto the finest grid."""
    batch, form, dtype = problem.batch, plan.form, problem.dtype
    is_reduced = form.REDUCTION != "none"
    images = "losses of images" if is_reduced else "loss"
    yield stores("losses", "losses of matrices", batch * plan.units, dtype)
    yield loads("losses", "losses of matrices", batch * plan.units, dtype)
    yield stores("losses", images, batch, dtype)
    if is_reduced:
        yield loads("losses", images, batch, dtype)
        yield stores("losses", "loss", 1, dtype)
    if form.FINEST:
        cells = sum(covered(scale, form.FINEST) for scale in form.SCALES)
        yield loads("fold", EVERY_DZ, batch * cells * problem.classes, dtype)
        yield stores("fold", DZ, batch * form.FINEST**2 * problem.classes, dtype)


def resident_gram(problem: Problem, form: Form, gradient: str) -> Iterator[Access]:
    """`resident_gram`: the stored logits once for every scale; rows are read back for each product with all rows."""
    rows = used_rows(problem, form) * problem.classes
    for name, constants, products in (("teacher", form.TEACHER, 1), ("student", form.STUDENT, 2)):
        grids = [constants.FINEST or scale for scale in used_scales(form)]
        read = problem.batch * sum(grid * grid for grid in grids) * constants.SPLITS * problem.classes
        yield loads("logits", f"{name}'s projected logits", read, problem.dtype)
        yield stores("logits", f"{name}'s logits", rows, problem.dtype)
        yield loads("products", f"{name}'s logits", products * rows, problem.dtype)
    yield stores("products", gradient, rows, problem.dtype)


def spatial_gram(problem: Problem, form: Form, gradient: str, sums: Sums) -> Iterator[Access]:
    """`_spatial_gram`: tiles of the Gram matrices, once for the losses and once for the gradient."""
    dtype, classes = problem.dtype, problem.classes
    rows = used_rows(problem, form)
    counts = [scale * scale for scale in used_scales(form)]
    pairs = problem.batch * sum(count * ceil_div(count, form.PAIR_BLOCK) for count in counts)  # rows x column blocks
    again = sum(
        times * (kind.rows * ceil_div(kind.cells, form.PAIR_BLOCK) + kind.cells)
        for kind, times in sums.items()
        if isinstance(kind, PairsAgain)
    )
    yield stores("norms", "norms", rows, dtype)
    yield loads("norms", "norms", rows, dtype)
    for name in ("student", "teacher"):
        yield loads("products", f"{name}'s logits", (2 * 2 * pairs + again) * classes, dtype)  # left and right, twice
    yield stores("products", "normalisers of rows", 4 * rows, dtype)
    yield loads("products", "normalisers of rows", 4 * (rows + pairs), dtype)
    yield loads("gradient", "student's logits", pairs * classes, dtype)
    yield loads("gradient", gradient, (pairs - rows) * classes, dtype)
    yield stores("gradient", gradient, pairs * classes, dtype)


def class_gram(problem: Problem, form: Form, gradient: str, sums: Sums) -> Iterator[Access]:
    """`class_gram`: extremes, the bound of how close the networks are, then a sum, or more where the first fails."""
    passes = (1 + (form.CLASS_SUM != "exact")) * used_rows(problem, form)
    for name in ("student", "teacher"):
        yield loads("class sums", f"{name}'s logits", passes * problem.classes, problem.dtype)
    for kind, times in sums.items():
        if isinstance(kind, ExactSum):
            entries = exact_class(problem, form, gradient, kind)
        elif isinstance(kind, LinearSum):
            entries = linear_sums(problem, gradient, kind)
        else:
            continue
        for entry in entries:
            yield entry._replace(loaded=times * entry.loaded, stored=times * entry.stored)


def exact_class(problem: Problem, form: Form, gradient: str, kind: ExactSum) -> Iterator[Access]:
    """`exact_class` of one cell: both networks' logits for every block of rows, then of columns."""
    dtype, classes = problem.dtype, problem.classes
    blocks = ceil_div(classes, form.CLASS_ROWS)
    rows = 2 + blocks + kind.again  # of a row's own x, in both passes, and of all columns for a block of rows
    yield loads("class sums", "student's logits", (rows + 2 * blocks) * classes, dtype)
    yield loads("class sums", "teacher's logits", (rows + blocks) * classes, dtype)
    yield stores("class sums", "normalisers of rows", 2 * classes, dtype)
    yield loads("class sums", "normalisers of rows", 2 * blocks * classes, dtype)
    yield loads("class sums", gradient, classes, dtype)
    yield stores("class sums", gradient, 2 * classes, dtype)


def linear_sums(problem: Problem, gradient: str, kind: LinearSum) -> Iterator[Access]:
    """`linear_class` of one cell: logits for every block of nodes, the values there to coefficients, and these at
    every class."""
    dtype, classes = problem.dtype, problem.classes
    for name, nodes in (("student", kind.student), ("teacher", kind.teacher)):
        rows = ceil_div(nodes.positive, NODE_BLOCK) + ceil_div(nodes.negative, NODE_BLOCK)
        columns = ceil_div(nodes.columns, NODE_BLOCK)
        yield loads("class sums", f"{name}'s logits", (rows + columns + 2) * classes, dtype)
        yield loads("class sums", "student's logits", rows * classes, dtype)
        yield loads("class sums", "normalisers of rows", columns * classes, dtype)
        for count, functions in ((nodes.positive, 3), (nodes.negative, 3), (nodes.columns, 1)):
            yield stores("class sums", NODES, 2 * functions * count, torch.float64)  # values, coefficients
            yield loads("class sums", NODES, functions * ceil_div(count, NODE_BLOCK) * count, torch.float64)
        above = classes - nodes.below
        interpolated = 3 * (above * nodes.positive + nodes.below * nodes.negative)
        interpolated += ceil_div(classes, POINT_BLOCK) * nodes.columns
        yield loads(SAME_ADDRESS, NODES, interpolated, torch.float64)
    yield stores("class sums", "normalisers of rows", 2 * classes, dtype)
    yield loads("class sums", gradient, classes, dtype)
    yield stores("class sums", gradient, 2 * classes, dtype)


def node_bytes(kind: LinearSum) -> int:
    """Of one cell's workspace, as far as the sums reach: values of one sum after another, then all coefficients."""
    networks = (kind.student, kind.teacher)
    rows = [count for nodes in networks for count in (nodes.positive, nodes.negative)]
    columns = [nodes.columns for nodes in networks]
    values = max(*rows, *columns) + 2 * max(rows)
    return torch.float64.itemsize * (values + 3 * sum(rows) + sum(columns))
