"""The hot loops of the CUDA kernels, counted in their machine code for sm_90: nothing on a CPU can see these."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from binary import tool
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++20", "-O3", "-arch=sm_90", "-cubin")

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH"),
    pytest.mark.thorough,
]


@cache
def functions_of(source: str) -> dict[str, list[str]]:
    """The machine code of every kernel of one file, line by line, by names such as `gram_kernel<float, 16>`."""
    includes = [f"-I{path}" for path in include_paths()]
    file = str(ROOT / "csrc" / "cuda" / f"{source}.cu")
    with TemporaryDirectory() as folder:
        binary = f"{folder}/{source}.cubin"
        subprocess.run(["nvcc", *FLAGS, *includes, file, "-o", binary], check=True)
        parts = re.split(r"\n\.text\.", tool("nvdisasm", "-c", binary))[1:]
    found: dict[str, list[str]] = {}
    for part in parts:
        name = subprocess.run(["c++filt", part.split(":")[0].strip()], capture_output=True, text=True, check=True)
        match = re.search(r"\w+_kernel<[^>]*>", name.stdout)
        assert match, name.stdout
        found[match[0]] = part.splitlines()
    return found


def loops_of(lines: list[str]) -> list[Counter[str]]:
    """How often each instruction stands in each loop; "all" counts them all."""
    code: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in lines:
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            code.append(re.sub(r"^@!?U?P\w+\s+", "", instruction[1].strip()))
    for stop, text in enumerate(code):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", text)
        if target and labels.get(target[1], stop + 1) <= stop:
            body = code[labels[target[1]] : stop + 1]
            loops.append(Counter([*(line.split()[0].split(".")[0] for line in body), *["all"] * len(body)]))
    return loops


@pytest.mark.parametrize(
    ("source", "kernel", "products", "most"),
    [
        ("product", "product_kernel<float, 64>", 256, 400),
        ("product", "product_kernel<float, 128>", 1024, 1300),
        ("gram", "gram_kernel<float, 16>", 32, 150),
        ("gram", "gram_kernel<float, 64>", 512, 730),
    ],
)
def test_a_step_of_a_product(source: str, kernel: str, products: int, most: int) -> None:
    """Instructions of a step of 16 of the depth, of which `products` multiply and add."""
    steps = [loop for loop in loops_of(functions_of(source)[kernel]) if loop["FFMA"] == products]
    steps = [loop for loop in steps if loop["LDS"] >= 32]  # those that read tiles of both matrices
    assert steps
    assert min(loop["all"] for loop in steps) <= most


def test_a_pair_of_the_class_gram() -> None:
    """Instructions for a (row, column) pair of both networks without shifts: of the rows' sums and of the columns'."""
    loops = loops_of(functions_of("gram")["gram_kernel<float, 0>"])
    without_shifts = [loop for loop in loops if loop["MUFU"] == 16 and loop["LDS"] in (8, 16)]  # eight pairs at a time
    rows, columns = (min(loop["all"] for loop in without_shifts if loop["LDS"] == reads) / 8 for reads in (8, 16))
    assert rows <= 15
    assert columns <= 10


@pytest.mark.parametrize("source", ["pool", "unpool", "product"])
def test_no_division_in_64_bits(source: str) -> None:
    for kernel, lines in functions_of(source).items():
        assert not [line for line in lines if re.search(r"div_[su]64|rem_[su]64", line)], kernel
