"""Rows whose student and teacher nearly agree, where a difference of sums is rounding noise, in the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from icd_kernels import gram_kl
from icd_kernels.backends.triton.operators import interprets

if not interprets():
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from programs import interpreted

FORMS = {
    "class": ((1,), 30, 1),
    "spatial in registers": ((3,), 30, 1),
    "spatial by tiles": ((5,), 10, 1),
    "sample": ((1,), 30, 6),
}
"""Scales, classes and images of each way a row's KL is summed."""


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("row_kl", [1e-3, 1e-6, 1e-8])
def test_small_divergences_keep_their_digits(form: str, row_kl: float) -> None:
    """float32, logits of order 1: within 1 % of float64 down to a row KL of 1e-8."""
    scales, classes, batch = FORMS[form]
    generator = torch.Generator().manual_seed(3)
    cells = scales[0] ** 2
    teacher = torch.randn(batch, classes, cells, generator=generator, dtype=torch.float64)
    shift = torch.randn(batch, classes, cells, generator=generator, dtype=torch.float64)
    options: Any = {"gram": form.split()[0], "scales": scales, "normalize": "l2", "reduction": "sum"}
    student = teacher + shift
    for _ in range(8):  # KL grows with the square of a small shift
        exact = gram_kl(student, teacher, backend="reference", **options)
        shift = shift * (row_kl * batch / float(exact)) ** 0.5
        student = (teacher + shift).float().double()
    teacher = teacher.float().double()
    exact = gram_kl(student, teacher, backend="reference", **options)
    with interpreted():
        loss = gram_kl(student.float(), teacher.float(), backend="triton", **options)
    assert abs(float(loss) / float(exact) - 1) < 0.01
