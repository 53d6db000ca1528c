"""dl/dz as the backward reads it: rows of images' cells, and the upstream gradients they are multiplied by."""

import triton
import triton.language as tl


@triton.jit
def gradient_rows(job, o_rows, CONSTANTS: tl.constexpr):
    """Where dl/dz of rows (image, cell) starts."""
    if CONSTANTS.ROWS_APART:
        image = o_rows // CONSTANTS.CELLS
        p_rows = job.p_gradient + image * job.stride_image + (o_rows % CONSTANTS.CELLS) * job.stride_cell
    else:
        p_rows = job.p_gradient + o_rows * job.stride_cell
    return p_rows


@triton.jit
def load_upstream(job, o_rows, m_rows, CONSTANTS: tl.constexpr):
    """The upstream gradients of the images of rows; 1 where there are none."""
    upstream = tl.full(o_rows.shape, 1.0, CONSTANTS.ACC)
    if job.p_upstream is not None:
        p_rows = job.p_upstream + o_rows // CONSTANTS.CELLS * job.stride_upstream
        upstream = tl.load(p_rows, mask=m_rows, other=0.0).to(CONSTANTS.ACC)
    return upstream


@triton.jit
def load_scale(job, CONSTANTS: tl.constexpr):
    """What every image's gradient is multiplied by."""
    scale = tl.full((), 1.0, CONSTANTS.ACC)
    if job.p_scale is not None:
        scale = tl.load(job.p_scale).to(CONSTANTS.ACC)
    return scale
