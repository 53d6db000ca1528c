"""Builds the compiled extension against the installed torch; without a compiler or torch, installs the pure parts.

Use `pip install --no-build-isolation .`: the extension must be built against the torch that will load it.

Environment:
    ICD_KERNELS_EXTENSION: "1" makes a failed build an error, "0" builds none, unset builds it if possible and says so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Command, Extension, setup

ROOT = Path(__file__).resolve().parent
CPP_SOURCES = ["csrc/bindings.cpp", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp"))]
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))
COMPILE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-g0",  # Python's own flags ask for debug symbols, which are nine tenths of the wheel
    "-fvisibility=hidden",
    "-fno-math-errno",  # together these two let loops of row math vectorise; NaN and inf keep their meaning
    "-fno-trapping-math",
    "-fopenmp",  # at::parallel_for is a template: its OpenMP region is compiled here ...
    "-Wall",
]
LIMITED_API = "0x030A0000"  # Python 3.10: one wheel serves every later Python


def say(message: str) -> None:
    print(f"icd_kernels: {message}", file=sys.stderr, flush=True)


def extension_and_builder() -> tuple[list[Extension], dict[str, type[Command]]]:
    """The extension and the command that builds it; nothing where it was refused or torch is not there to build against."""
    wanted = os.environ.get("ICD_KERNELS_EXTENSION")
    if wanted == "0":
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if wanted == "1":
            raise
        say(f"torch cannot be imported ({error}): installing without the compiled backend.")
        say("Install torch first, then: pip install --no-build-isolation .")
        return [], {}

    class BuildOrSay(BuildExtension):  # type: ignore[misc]
        """Builds the extension; where that fails and it was not demanded, says why and installs the rest."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                if wanted == "1":
                    raise
                say(f"the extension could not be built: {error}")
                say("Installing without the compiled backend: backend='reference' works, only slower.")
                say("It needs a C++20 compiler (g++ or clang++); ICD_KERNELS_EXTENSION=1 makes this an error.")
                self.extensions = []

    extension = CppExtension(
        "icd_kernels._C",
        CPP_SOURCES,
        depends=HEADERS,
        extra_compile_args={"cxx": COMPILE_FLAGS},  # ... and its runtime is the one torch has loaded, so none is linked
        define_macros=[("Py_LIMITED_API", LIMITED_API)],
        py_limited_api=True,
    )
    return [extension], {"build_ext": BuildOrSay.with_options(no_python_abi_suffix=False)}


extensions, commands = extension_and_builder()
setup(
    ext_modules=extensions,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
)
