"""Builds the compiled extension with the installed torch's headers; without a compiler or torch, the pure parts alone.

Use `pip install --no-build-isolation .`: in an isolated build there is no torch. What is built runs with every torch
from 2.11 on, whichever it was built with: it keeps to LibTorch's stable ABI.

Environment:
    ICD_KERNELS_EXTENSION: "1" makes a failed build an error, "0" builds none, unset builds it if possible and says so.
    ICD_KERNELS_CUDA: "1" demands the CUDA kernels, "0" leaves them out, unset adds them where torch has CUDA and its
        nvcc is found. No GPU need be there.
    CUDA_HOME: the CUDA toolkit; unset is the one that the nvcc on the PATH belongs to.
    TORCH_CUDA_ARCH_LIST: the GPUs to build for, as torch's own extensions take it; unset is 8.0;9.0;10.0+PTX, less
        what nvcc is too old for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import setuptools
from setuptools import Command, Extension, setup

OLDEST_SETUPTOOLS = (77, 0, 3)  # reads the licence of pyproject.toml, and has bdist_wheel
if tuple(int(part) for part in setuptools.__version__.split(".")[:3] if part.isdigit()) < OLDEST_SETUPTOOLS:
    needed = ".".join(map(str, OLDEST_SETUPTOOLS))
    raise SystemExit(
        f"icd_kernels: building needs setuptools {needed} or newer, found {setuptools.__version__}: "
        f"pip install 'setuptools>={needed}'"
    )
from setuptools.command.bdist_wheel import bdist_wheel  # noqa: E402 - older ones have none

ROOT = Path(__file__).resolve().parent
CPP_SOURCES = sorted(
    str(path.relative_to(ROOT)) for folder in (".", "cpu", "triton") for path in (ROOT / "csrc" / folder).glob("*.cpp")
)
CUDA_SOURCES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cuda").iterdir() if path.suffix in (".cpp", ".cu")
)
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh"))
COMPILE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-g0",  # Python's own flags ask for debug symbols, which are nine tenths of the wheel
    "-fvisibility=hidden",
    "-fno-math-errno",  # together these two let loops of row math vectorise; NaN and inf keep their meaning
    "-fno-trapping-math",
    "-fopenmp-simd",  # loops that reduce; threads are those of torch::stable::parallel_for
    "-Wall",
]
CUDA_COMPILE_FLAGS = ["-O3", "-std=c++20"]
ARCHITECTURES = {"8.0": (11, 0), "9.0": (11, 8), "10.0": (12, 8)}  # and the first nvcc that knows each
LIMITED_API = "0x030A0000"  # Python 3.10: one wheel serves every later Python
STABLE_ABI = "0x020B000000000000"  # torch 2.11: one wheel serves every later torch


def say(message: str) -> None:
    print(f"icd_kernels: {message}", file=sys.stderr, flush=True)


def cuda_architectures() -> str:
    """What the CUDA kernels are built for, or "" where they are not built.

    Raises:
        RuntimeError: they are demanded and cannot be built; says what is missing.
    """
    wanted = os.environ.get("ICD_KERNELS_CUDA")
    if wanted == "0":
        return ""
    nvcc, missing = usable_nvcc()
    if missing:
        if wanted == "1":
            raise RuntimeError(f"ICD_KERNELS_CUDA=1, but {missing}")
        say(f"building without the CUDA kernels: {missing}.")
        return ""
    known = ";".join(name for name, first in ARCHITECTURES.items() if first <= nvcc)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or f"{known}+PTX"
    say(f"building the CUDA kernels for {architectures}.")
    return architectures


def usable_nvcc() -> tuple[tuple[int, ...], str]:
    """The version of the nvcc that torch's extensions use, and what is missing for it to build ours ("" if nothing)."""
    import torch

    if torch.version.cuda is None:
        return (), f"torch {torch.__version__} is built without CUDA"
    find_toolkit()
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = Path(CUDA_HOME or "") / "bin" / ("nvcc.exe" if os.name == "nt" else "nvcc")
    if CUDA_HOME is None or not nvcc.is_file():
        return (), f"there is no nvcc (torch is built with CUDA {torch.version.cuda}; CUDA_HOME is {CUDA_HOME})"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    if found is None:
        return (), f"{nvcc} does not say its version"
    version = tuple(int(part) for part in found.groups())
    if version[0] != int(torch.version.cuda.split(".")[0]):
        return version, f"nvcc of {found[0]} and torch's CUDA {torch.version.cuda} are not of one major version"
    return version, ""


class Wheel(bdist_wheel):  # type: ignore[misc]
    """A wheel whose name says what is in it: without the extension it is one for every platform and Python."""

    def run(self) -> None:
        self.run_command("build")
        if not self.distribution.ext_modules:
            self.root_is_pure, self.py_limited_api = True, False
        super().run()


def find_toolkit() -> None:
    """Sets CUDA_HOME, before torch guesses it, by asking nvcc: the one on the PATH may be a script or a link."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    said = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    if found is not None:
        os.environ["CUDA_HOME"] = str(Path(found[1].strip()).resolve())


def extension_and_builder() -> tuple[list[Extension], dict[str, type[Command]]]:
    """The extension and the command that builds it; nothing where that was refused or there is no torch."""
    wanted = os.environ.get("ICD_KERNELS_EXTENSION")
    if wanted == "0":
        return [], {}
    try:
        architectures = cuda_architectures()
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        if wanted == "1" or os.environ.get("ICD_KERNELS_CUDA") == "1":
            raise
        say(f"torch cannot be imported ({error}): installing without the compiled backend.")
        say("Install torch first, then: pip install --no-build-isolation .")
        return [], {}

    class BuildOrSay(BuildExtension):
        """Builds the extension; where that fails and it was not demanded, says why and goes on without it."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted == "1":
                    raise
                say(f"the extension could not be built: {error}")
                say("Installing without the compiled backend: backend='reference' works, only slower.")
                say("It needs a C++20 compiler (g++ or clang++); ICD_KERNELS_EXTENSION=1 makes this an error.")
                if architectures:
                    say("ICD_KERNELS_CUDA=0 builds it without the CUDA kernels.")
                self.extensions: list[Extension] = []
                self.distribution.ext_modules = []

    flags = {"cxx": COMPILE_FLAGS}  # ... and OpenMP's runtime is the one torch has loaded, so none is linked
    if architectures:
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures  # torch would ask the GPUs that are there
        build = architectures.replace(";", ",").replace(" ", ",")
        flags = {"cxx": [*COMPILE_FLAGS, f'-DICD_CUDA_BUILD="{build}"'], "nvcc": CUDA_COMPILE_FLAGS}
    make_extension = CUDAExtension if architectures else CppExtension
    extension = make_extension(
        "icd_kernels._C",
        [*CPP_SOURCES, *(CUDA_SOURCES if architectures else [])],
        depends=HEADERS,
        extra_compile_args=flags,
        define_macros=[
            ("Py_LIMITED_API", LIMITED_API),
            ("TORCH_TARGET_VERSION", STABLE_ABI),
            *([("USE_CUDA", None)] if architectures else []),  # the stable ABI declares its CUDA calls under it
        ],
        py_limited_api=True,
    )
    return [extension], {"build_ext": BuildOrSay, "bdist_wheel": Wheel}


extensions, commands = extension_and_builder()
setup(
    ext_modules=extensions,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
