"""What the assembler says of every CUDA kernel: registers, spills and shared memory, for each GPU generation.

python tests/support/ptxas.py        prints the table; needs nvcc and torch's headers, no GPU
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (80, 90, 100)
# The CPU build of torch has c10's CUDA headers but not the file its CUDA build generates.
FLAGS = ["-std=c++20", "-O3", "-Werror", "all-warnings", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", "-Xptxas", "-v"]


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture; memory in bytes, spills and stack for each thread."""

    name: str
    architecture: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int

    @property
    def math(self) -> str:
        return "float64" if "double" in self.name else "float32"


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\d+)\w*'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def compile_kernels(source: Path, folder: Path) -> list[Kernel]:
    """Compiles one file for every architecture at once, warnings as errors.

    Raises:
        RuntimeError: nvcc refused it; with what it said.
    """
    nvcc = shutil.which("nvcc")
    assert nvcc is not None, "nvcc is not on the PATH"
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    includes = [f"-I{path}" for path in include_paths()]
    command = [nvcc, *FLAGS, *targets, *includes, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    said = finished.stdout + finished.stderr
    if finished.returncode != 0:
        raise RuntimeError(f"{source.name}: {said}")
    return [_kernel(match) for match in _ENTRY.finditer(said)]


def _kernel(match: re.Match[str]) -> Kernel:
    shared = re.search(r"(\d+) bytes smem", match["rest"])
    return Kernel(
        name=_demangled(match["name"]),
        architecture=int(match["architecture"]),
        registers=int(match["registers"]),
        stack=int(match["stack"]),
        spill_stores=int(match["stores"]),
        spill_loads=int(match["loads"]),
        shared=int(shared[1]) if shared else 0,
    )


def _demangled(name: str) -> str:
    """`gram_kernel<float, 16>`, or the mangled name where there is no c++filt."""
    if shutil.which("c++filt") is None:
        return name
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\w+_kernel<[^>]*>)\(", plain)
    return found[1] if found else plain.strip()


def compile_all(folder: Path, jobs: int = 2) -> list[Kernel]:
    """Every kernel of the package."""
    with ThreadPoolExecutor(jobs) as pool:
        return [
            kernel
            for kernels in pool.map(lambda source: compile_kernels(source, folder), SOURCES)
            for kernel in kernels
        ]


def table(kernels: list[Kernel]) -> str:
    """Markdown: a row for each kernel, and for each architecture registers / spilled bytes / shared bytes."""
    head = "".join(f" sm_{number} |" for number in ARCHITECTURES)
    lines = [
        "registers / bytes spilled / bytes of shared memory",
        f"| kernel |{head}",
        "|---" * (len(ARCHITECTURES) + 1) + "|",
    ]
    for name in sorted({kernel.name for kernel in kernels}):
        on = {kernel.architecture: kernel for kernel in kernels if kernel.name == name}
        cells = (
            f"{on[a].registers} / {on[a].spill_stores + on[a].spill_loads} / {on[a].shared}" for a in ARCHITECTURES
        )
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.stdout.write(table(compile_all(Path(temporary))) + "\n")
