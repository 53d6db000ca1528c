"""dl/dz of every cell folded onto the finest grid: the transpose of coarse cells being means over it."""

import triton
import triton.language as tl

from icd_kernels.backends.triton.cells import window_start, window_stop


@triton.jit
def fold_gradient(
    p_gradient, stride_image, stride_cell, stride_class, p_folded, image, depth, pitch, ACC: tl.constexpr,
    SCALES: tl.constexpr, FIRSTS: tl.constexpr, FINEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Folds one image's dl/dz, rows of `depth` numbers, into (finest cells, pitch): each cell's share goes to those it
    is the mean of."""
    wide = tl.full((), 0, tl.int64) + image
    p_image = p_gradient + wide * stride_image
    p_out = p_folded + wide * (FINEST * FINEST) * pitch
    for start_cell in range(0, FINEST * FINEST, ROWS):
        o_cells = start_cell + tl.arange(0, ROWS)
        for start in range(0, pitch, BLOCK):
            o_classes = start + tl.arange(0, BLOCK)
            m_cells = (o_cells < FINEST * FINEST)[:, None]
            m_tile = m_cells & (o_classes < depth)[None, :]
            p_classes = p_image + o_classes.to(tl.int64)[None, :] * stride_class
            total = _gather_cells(p_classes, stride_cell, o_cells, m_tile, ACC, SCALES, FIRSTS, FINEST)
            o_out = o_cells.to(tl.int64)[:, None] * pitch + o_classes[None, :]
            tl.store(p_out + o_out, total, mask=m_cells & (o_classes < pitch)[None, :])


@triton.jit
def _gather_cells(
    p_classes, stride_cell, o_cells, m_tile, ACC: tl.constexpr, SCALES: tl.constexpr, FIRSTS: tl.constexpr,
    FINEST: tl.constexpr,
):  # fmt: skip
    """Sum over every cell that covers places `o_cells` of the finest grid, each over its own size. At most 2 x 2 do."""
    total = tl.zeros(m_tile.shape, ACC)
    for s in tl.static_range(len(SCALES)):
        for place in tl.static_range(4):
            row = window_start(o_cells // FINEST, FINEST, SCALES[s]) + place // 2
            column = window_start(o_cells % FINEST, FINEST, SCALES[s]) + place % 2
            is_row = row < window_stop(o_cells // FINEST, FINEST, SCALES[s])
            is_column = column < window_stop(o_cells % FINEST, FINEST, SCALES[s])
            height = window_stop(row, SCALES[s], FINEST) - window_start(row, SCALES[s], FINEST)
            width = window_stop(column, SCALES[s], FINEST) - window_start(column, SCALES[s], FINEST)
            o_gradient = (FIRSTS[s] + row * SCALES[s] + column).to(tl.int64)[:, None] * stride_cell
            m_gradient = m_tile & (is_row & is_column)[:, None]
            b_gradient = tl.load(p_classes + o_gradient, mask=m_gradient, other=0.0).to(ACC)
            total += b_gradient / (height * width)[:, None]
    return total
