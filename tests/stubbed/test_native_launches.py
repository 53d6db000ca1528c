"""Launches by the compiled extension give the driver what Triton's launcher would have given it.

Run by tests/test_triton_host.py, with a driver that launches nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_remembered_launches import LAUNCHES, OPERATORS, expected, tensor
from triton import knobs

from icd_kernels.backends.triton import native, plan
from icd_kernels.problem import CLASS, MEAN, NONE, SPATIAL, GramOptions

ENTRY = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *([ctypes.c_uint] * 7), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)
"""The type of cuLaunchKernel."""
READ_AS: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp64": ctypes.c_double}
OPTIONS = {
    "spatial": GramOptions((1, 2), (0.5, 0.5), SPATIAL, (0.0, 1.0), 2.0, MEAN),
    "class": GramOptions((1, 2), (0.5, 0.5), CLASS, (1.0, 0.5), 0.75, NONE),
}


class Driver:
    """In place of the driver: notes every launch and its parameters, and answers `answer`."""

    def __init__(self) -> None:
        self.answer = 0
        self.sizes: list[tuple[int, ...]] = []
        self.parameters: list[list[Any]] = []
        self.sources: list[Any] = []
        """Of the kernels, in the order of their launches."""
        self.entry = ENTRY(self._launch)

    def _launch(self, function: int, *rest: Any) -> int:
        *sizes, stream, parameters, extra = rest
        assert (function, stream, extra) == (1, None, None)
        pointers = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))
        source = self.sources[len(self.sizes) % len(self.sources)]
        types = [kind for kind, _ in taken(source, list(source.signature.values()))]
        self.sizes.append(tuple(sizes))
        self.parameters.append([read(kind, pointers[n]) for n, kind in enumerate(types)])
        return self.answer


def read(kind: str, pointer: int | None) -> Any:
    assert pointer is not None
    return READ_AS.get(kind, ctypes.c_uint64).from_address(pointer).value


def taken(source: Any, values: Any) -> list[tuple[str, Any]]:
    """Type and value of what a kernel takes at run time, of all its arguments."""

    def flat(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
        for kind, value in zip(kinds, values, strict=True):
            if isinstance(kind, tuple):
                yield from flat(kind, value)
            elif kind != "constexpr":
                yield kind, value

    return list(flat(source.signature.values(), values))


NATIVE: list[tuple[Any, ...]] = []
"""The arguments of every :func:`native.native_launch`."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    if native.launch is None:
        pytest.skip("the compiled extension is missing")
    packed = native.native_launch

    def noted(*arguments: Any) -> Any:
        NATIVE.append(arguments)
        return packed(*arguments)

    monkeypatch.setattr(native, "native_launch", noted)
    NATIVE.clear()
    LAUNCHES.clear()
    noting = Driver()
    monkeypatch.setattr(native, "driver_entry", lambda: ctypes.cast(noting.entry, ctypes.c_void_p).value)
    plan.forget()
    yield noting
    plan.forget()


def step(form: str, dtype: torch.dtype = torch.float32) -> None:
    """Forward and backward."""
    options, finest = OPTIONS[form], 2 if form == "spatial" else 0
    student = tensor(2, 16, 4, 4, dtype=dtype), tensor(5, 16, dtype=dtype), None
    teacher = tensor(2, 8, 4, 4, dtype=dtype), tensor(5, 8, dtype=dtype), tensor(5, dtype=dtype)
    loss, saved, pooled = OPERATORS.icd_loss(*student, *teacher, *options, finest, finest, True, True)
    layout = (student[0].shape, student[0].stride(), dtype, dtype)
    OPERATORS.icd_loss_backward(loss, saved, pooled, student[1], *layout, *options, finest, (True, True, False))


@pytest.mark.parametrize(("form", "dtype"), [("spatial", torch.float32), ("class", torch.float64)])
def test_the_driver_gets_what_triton_would_give_it(driver: Driver, form: str, dtype: torch.dtype) -> None:
    step(form, dtype)
    driver.sources = [source for source, _ in LAUNCHES]
    with expected() as made:
        step(form, dtype)
    assert len(LAUNCHES) == len(driver.sources), "the second step went through Triton's launcher"
    assert len(driver.parameters) == len(driver.sources) == 2
    for source, parameters, arguments in zip(driver.sources, driver.parameters, made, strict=True):
        assert parameters == [value or 0 for _, value in taken(source, arguments)]
    sizes = [(programs, 1, 1, 32 * of.metadata.num_warps, 1, 1, of.metadata.shared) for of, programs, *_ in NATIVE]
    assert driver.sizes == sizes
    assert len(set(sizes)) == len(sizes), "two launches that nothing tells apart"


def test_where_the_driver_refuses_tritons_launcher_says_why(driver: Driver) -> None:
    step("spatial")
    driver.sources, driver.answer = [source for source, _ in LAUNCHES], 201
    step("spatial")
    assert [source for source, _ in LAUNCHES] == driver.sources * 2


def test_a_profiler_sees_every_launch(driver: Driver) -> None:
    def watch(metadata: Any) -> None:
        """As Proton's hook."""

    step("spatial")
    hooks = knobs.runtime.launch_enter_hook
    hooks.add(watch)
    try:
        step("spatial")
    finally:
        hooks.remove(watch)
    assert (len(LAUNCHES), driver.sizes) == (4, [])


@pytest.mark.parametrize(
    ("types", "agree"),
    [
        (["*fp32", "i32", "fp64"], True),
        (["*fp32", "i32"], False),
        (["*fp32", "i64", "fp64"], False),
        (["*fp32", "i32", "fp32"], False),
        (["*fp32", "i32", "fp64", "i32"], False),
    ],
)
def test_parameters_that_are_not_the_kernels(types: list[str], agree: bool) -> None:
    """Then Triton launches: it may have changed what it hands to kernels."""
    ptx = """.visible .entry kernel(
        .param .u64 .ptr .global .align 1 kernel_param_0, .param .u32 kernel_param_1, .param .f64 kernel_param_2,
        .param .u64 .ptr .global .align 1 kernel_param_3
    )"""
    assert native._agree(types, ptx) == agree
    assert not native._agree(types, "")


@pytest.mark.parametrize(("field", "value"), [("num_ctas", 2), ("launch_pdl", True), ("launch_cooperative_grid", True)])
def test_launches_that_are_more_than_a_grid_are_tritons(driver: Driver, field: str, value: Any) -> None:
    step("spatial")
    ((compiled, programs, places, numbers), *_) = NATIVE
    assert native.native_launch(compiled, programs, places, numbers) is not None
    metadata = compiled.metadata._replace(**{field: value})
    changed = SimpleNamespace(metadata=metadata, src=compiled.src, asm=compiled.asm, function=compiled.function)
    assert native.native_launch(changed, programs, places, numbers) is None


def test_a_plan_that_is_wrong_is_refused(driver: Driver) -> None:
    launch: Any = native.launch
    header = native._HEADER.pack(0, 1, 1, 128, 0, 1)
    for arguments, error in (
        ((b"", [], (), 0), ValueError),
        ((header, [], (), 0), ValueError),
        (("", [], (), 0), TypeError),
        ((header + native._PLACE.pack(native.ADDRESS, 0, 0), [], (), 0), IndexError),
        ((header + native._PLACE.pack(native.ADDRESS, 0, 0), [1.5], (), 0), TypeError),
        ((header + native._PLACE.pack(native.NUMBER, 0, 0), [], (), 0), IndexError),
        ((header + native._PLACE.pack(native.NUMBER, 0, 0), [], ("a",), 0), TypeError),
        ((b"",), TypeError),
    ):
        with pytest.raises(error):
            launch(*arguments)
