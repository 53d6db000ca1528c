"""The compiled CPU operators over every option and odd shapes, against the reference, and the launcher of Triton's
kernels; run by test_sanitizers.py."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import icd_kernels
from icd_kernels.options import GRAMS, NORMALIZATIONS, PYRAMIDS, REDUCTIONS

SIZES = [((1, 1), (3, 17)), ((5, 7), (14, 16)), ((7, 7), (28, 28)), ((4, 4), (2, 2))]
CHANNELS = [1, 16, 65, 70]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def feature_map(batch: int, channels: int, size: tuple[int, int], layout: int, dtype: torch.dtype) -> Tensor:
    """Contiguous, channels-last, a token grid behind a class token, or a window of a larger map."""
    height, width = size
    if layout == 0:
        return torch.randn(batch, channels, height, width).to(dtype)
    if layout == 1:
        return torch.randn(batch, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    if layout == 2:
        tokens = torch.randn(batch, 1 + height * width, channels).to(dtype)
        return tokens[:, 1:].transpose(1, 2).unflatten(2, size)
    return torch.randn(batch, channels + 1, height + 2, 2 * width).to(dtype)[:, 1:, 1:-1, ::2]


def run(case: int, gram: str, pyramid: str, normalize: str, reduction: str) -> None:
    student_size, teacher_size = SIZES[case % len(SIZES)]
    batch, classes = 1 + case % 3, (2, 33, 17, 48)[case % 4]
    scales = ((1, 2, 4), (3, 1), (2,), (4, 4, 1))[case % 4]
    channels = CHANNELS[case % 4]
    dtype, teacher_dtype = DTYPES[case % 4], DTYPES[case // 4 % 4]
    features = feature_map(batch, channels, student_size, case % 4, dtype).requires_grad_()
    weight = torch.randn(classes, channels, dtype=dtype, requires_grad=True)
    bias = torch.randn(classes, dtype=dtype, requires_grad=True) if case % 2 else None
    loss = partial(
        icd_kernels.icd_loss,
        features,
        weight,
        feature_map(batch, 6, teacher_size, case // 3 % 4, teacher_dtype),
        torch.randn(classes, 6),
        bias,
        torch.randn(classes),
        scales=scales,
        gram=gram,
        pyramid=pyramid,
        normalize=normalize,
        reduction=reduction,
    )
    student = (features, weight)
    torch.testing.assert_close(loss(backend="cpp"), loss(backend="reference"), rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(loss(backend="cpp").sum(), student)
    theirs = torch.autograd.grad(loss(backend="reference").sum(), student)
    for mine, expected in zip(ours, theirs, strict=True):
        tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 2e-2
        floor = 1e-5 + tolerance * expected.abs().max().item()
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=floor)
    logits = icd_kernels.region_logits(features, weight, bias, scales=scales, pyramid=pyramid, backend="cpp")
    icd_kernels.gram_kl(logits, logits + 1, scales=scales, gram=gram, normalize=normalize, backend="cpp").backward()
    icd_kernels.region_features(features, scales=scales, pyramid=pyramid, backend="cpp").square().sum().backward()
    run_rows(case, logits.detach())


def run_rows(case: int, logits: Tensor) -> None:
    """Row losses of local logits in two layouts, with classes that are masked."""
    student = logits.clone().requires_grad_()
    teacher = (logits + torch.randn_like(logits)).contiguous()
    teacher[0, 0] = -torch.inf
    target = torch.full((len(logits),), 1)
    for base in ("kd", "dkd", "nkd"):
        loss = icd_kernels.sdd_loss(student, teacher, target, base=base, temperature=1.0 + case % 2, backend="cpp")
        loss.backward()


def run_launch() -> None:
    """The launcher of Triton's kernels (csrc/triton/launch.cpp), with a function in place of the driver's."""
    seen: list[int] = []

    def driver(*arguments: int) -> int:
        parameters = ctypes.cast(arguments[9], ctypes.POINTER(ctypes.POINTER(ctypes.c_uint64)))
        seen.extend(parameters[n][0] for n in range(256 + 4))
        return 0

    kinds = [ctypes.c_void_p, *([ctypes.c_uint] * 7), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(driver)
    entry = ctypes.cast(function, ctypes.c_void_p).value
    places = [(0, 0, -1), (1, 2, 16), (2, 1, 0)] + [(0, 0, n) for n in range(253)]
    plan = struct.pack("<QQIIII", entry, 1, 8, 128, 0, len(places))
    plan += b"".join(struct.pack("<iiq", *place) for place in places)
    assert import_module("icd_kernels._C").launch(plan, [0, 0, 1 << 40], (0.5, 1.0), 0) == 0
    assert seen[:4] == [2**64 - 1, (1 << 40) + 16, 0x3FF0000000000000, 0]
    assert seen[255:] == [252, 0, 0, 0, 0]


if __name__ == "__main__":
    torch.manual_seed(0)
    run_launch()
    options = itertools.product(GRAMS, PYRAMIDS, NORMALIZATIONS, REDUCTIONS)
    cases = 0
    for cases, option in enumerate(options, start=1):
        run(cases, *option)
    print(f"{cases} sanitized cases with {os.environ.get('ICD_KERNELS_ISA', 'the best')} instruction set")
