"""From the second call on a launch goes past Triton's dispatch: it must be the one that Triton would have made.

Run by tests/test_triton_host.py, with a driver that launches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import stub_driver
from icd_kernels.backends.triton import launch
from icd_kernels.backends.triton.structs import Work
from icd_kernels.problem import CLASS, MEAN, NONE, SPATIAL, GramOptions

LAUNCHES: list[tuple[Any, tuple[Any, ...]]] = []
stub_driver.install(lambda source, args: LAUNCHES.append((source, args)))
OPERATORS = torch.ops.icd_kernels_triton
RELEASED = GramOptions((1, 2), (0.5, 0.5), SPATIAL, (0.0, 1.0), 2.0, MEAN)


@pytest.fixture(autouse=True)
def _no_launches_yet() -> None:
    LAUNCHES.clear()


def tensor(*shape: int, misaligned: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, beginning at a multiple of 16 bytes or not."""
    count = torch.Size(shape).numel()
    return torch.zeros(count + 1, dtype=dtype)[int(misaligned) :][:count].view(shape)


def scaled(saved: Tensor, upstream: Tensor) -> Any:
    """What was compiled for the launch of gram_kl_backward."""
    options = GramOptions((1, 2), (0.5, 0.125), CLASS, (0.0, 0.0), 1.0, NONE if upstream.ndim else MEAN)
    OPERATORS.gram_kl_backward(upstream, saved, saved.dtype, *options)
    return LAUNCHES[-1][0]


def shown(value: Any) -> Any:
    """An argument as a driver sees it: a tensor by its address, a constant by its value."""
    if isinstance(value, tuple):
        return tuple(map(shown, value))
    if isinstance(value, Tensor):
        return value.data_ptr()
    return getattr(value, "value", value)


@contextmanager
def expected() -> Iterator[list[Any]]:
    """What Triton itself would be given by every launch, whether that goes through its dispatch or not."""
    made: list[Any] = []
    call = launch.Launch.__call__

    def noted(
        self: Any, device: Any, arguments: Any, given: Any, allocated: Any, stream: Any = None, last: Any = ()
    ) -> None:
        made.append(shown((*arguments(*given), *last, *self.constants.values())))
        call(self, device, arguments, given, allocated, stream, last)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(launch.Launch, "__call__", noted)
        yield made


def specialised(source: Any) -> Any:
    """For which arguments a kernel was compiled."""
    return source.signature, {path: attribute for path, attribute in source.attrs.items() if attribute}


def test_the_second_launch_is_the_first() -> None:
    saved, upstream = tensor(2, 5, 7), tensor()
    with expected() as made:
        assert scaled(saved, upstream) is scaled(saved, upstream) is scaled(tensor(2, 5, 7), tensor())
    assert [shown(args) for _, args in LAUNCHES] == made


def test_tensors_that_were_one_may_be_two_the_next_time() -> None:
    """As where a student begins as its teacher: what is remembered must not be that they are one."""
    features, weight = tensor(2, 16, 4, 4), tensor(5, 16)
    with expected() as made:
        for teacher in (features, tensor(2, 16, 4, 4)):
            OPERATORS.icd_loss(features, weight, None, teacher, weight, None, *RELEASED, 2, 2, True, True)
    assert [shown(args) for _, args in LAUNCHES] == made
    assert made[1][1][0] not in (made[0][1][0], made[1][0][0])


@pytest.mark.parametrize("misaligned", ["saved", "upstream"])
def test_another_alignment_has_a_kernel_of_its_own(misaligned: str) -> None:
    aligned = scaled(tensor(2, 5, 7), tensor())
    other = scaled(tensor(2, 5, 7, misaligned=misaligned == "saved"), tensor(misaligned=misaligned == "upstream"))
    assert specialised(aligned) != specialised(other)
    assert scaled(tensor(2, 5, 7), tensor()) is aligned


def test_another_size_has_a_launch_of_its_own() -> None:
    scaled(tensor(2, 5, 7), tensor())
    scaled(tensor(2, 5, 16), tensor())
    scaled(tensor(3, 5, 7), tensor())
    scaled(tensor(3, 5, 7), tensor(3))
    numbers = [tuple(value for value in args if isinstance(value, int) and value < 2**20) for _, args in LAUNCHES]
    strides_and_shape = [(35, 7, 1, 0, 5, 7), (80, 16, 1, 0, 5, 16), (35, 7, 1, 0, 5, 7), (35, 7, 1, 1, 5, 7)]
    assert [found[:6] for found in numbers] == strides_and_shape


def test_another_dtype_has_a_kernel_of_its_own() -> None:
    narrow = scaled(tensor(2, 5, 7), tensor())
    wide = scaled(tensor(2, 5, 7, dtype=torch.float64), tensor(dtype=torch.float64))
    assert "fp64" in str(wide.signature)
    assert "fp64" not in str(narrow.signature)


def test_a_class_gram_reads_sixteen_bytes_at_a_time() -> None:
    """For which rows of its workspace must begin there, whatever K is and whatever callers give."""
    options = GramOptions((1, 2), (0.5, 0.125), CLASS, (0.0, 0.0), 1.0, MEAN)
    logits = tensor(2, 5, 5, misaligned=True)
    OPERATORS.gram_kl(logits, logits, *options, True)
    (_, arguments), *_ = LAUNCHES
    work = Work(*shown(arguments)[2])
    assert work.pitch % 16 == 0
    assert all(pointer % 16 == 0 for pointer in (work.p_student, work.p_teacher, work.p_rows))


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_whole_step_repeats_itself(with_bias: bool) -> None:
    """Forward and backward: one launch each, with the same sizes, strides, constants and kinds of tensors."""
    bias = tensor(5) if with_bias else None

    def step() -> None:
        student = (tensor(2, 16, 4, 4), tensor(5, 16), bias)
        loss, saved, pooled = OPERATORS.icd_loss(*student, *student, *RELEASED, 2, 2, True, True)
        layout = (student[0].shape, student[0].stride(), torch.float32, torch.float32)
        OPERATORS.icd_loss_backward(loss, saved, pooled, student[1], *layout, *RELEASED, 2, (True, True, with_bias))

    with expected() as made:
        step()
        step()
    assert [source.fn.__name__ for source, _ in LAUNCHES] == ["icd_loss_kernel", "backward_kernel"] * 2
    assert LAUNCHES[0][0] is LAUNCHES[2][0]
    assert LAUNCHES[1][0] is LAUNCHES[3][0]
    assert [shown(args) for _, args in LAUNCHES] == made
