"""The CUDA kernels compile for every GPU generation, without one: warnings are errors, and float32 spills nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ptxas
import pytest
import torch
from torch.utils.cpp_extension import include_paths

from icd_kernels import icd_loss
from icd_kernels.backends.base import BackendUnavailableError
from icd_kernels.backends.cuda import CUDA, built_for
from icd_kernels.operators import SCHEMAS

ROOT = Path(__file__).resolve().parent.parent
NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[ptxas.Kernel]:
    return ptxas.compile_all(tmp_path_factory.mktemp("cuda"))


@NVCC
@pytest.mark.thorough
class TestKernels:
    def test_table(self, kernels: list[ptxas.Kernel], capsys: pytest.CaptureFixture[str]) -> None:
        with capsys.disabled():
            print("\n" + ptxas.table(kernels))
        assert {kernel.architecture for kernel in kernels} == set(ptxas.ARCHITECTURES)
        names = {kernel.name for kernel in kernels}
        assert len(kernels) == len(names) * len(ptxas.ARCHITECTURES)

    def test_float32_spills_nothing(self, kernels: list[ptxas.Kernel]) -> None:
        in_float32 = [kernel for kernel in kernels if kernel.math == "float32"]
        assert in_float32
        assert not [kernel for kernel in in_float32 if kernel.spill_stores or kernel.spill_loads or kernel.stack]

    def test_shared_memory_is_what_every_gpu_has(self, kernels: list[ptxas.Kernel]) -> None:
        assert max(kernel.shared for kernel in kernels) <= 48 * 1024

    @pytest.mark.parametrize("name", ["device", "operators"])
    def test_the_cuda_side_of_the_launcher_compiles(self, name: str, tmp_path: Path) -> None:
        """Against the CPU build's headers; the rest of the launcher is compiled by test_cuda_emulated.py."""
        command = ["nvcc", "-std=c++20", "-Werror", "all-warnings", "-Xcompiler", "-fvisibility=hidden", "-DUSE_CUDA"]
        includes = [f"-I{path}" for path in include_paths()]
        source = str(ROOT / "csrc" / "cuda" / f"{name}.cpp")
        command += ["-DTORCH_TARGET_VERSION=0x020B000000000000"]
        command += ['-DICD_CUDA_BUILD=\\"test\\"', *includes, "-c", source, "-o", str(tmp_path / "object.o")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr


STUB_OF_TORCH = """
import os
from setuptools import Command, Extension
CUDA_HOME = os.environ.get("CUDA_HOME")
class BuildExtension(Command):
    pass
def CUDAExtension(name, sources, py_limited_api, **arguments):
    return Extension(name, sources)
CppExtension = CUDAExtension
"""


def build_says(**environment: str) -> subprocess.CompletedProcess[str]:
    """`setup.py --version` decides about CUDA and builds nothing."""
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    decisive = ("ICD_KERNELS_", "CUDA_", "TORCH_CUDA_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(decisive)}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def build_with(folder: Path, torch_cuda: str, nvcc: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The decision with a torch of CUDA `torch_cuda` and an nvcc that says it is of release `nvcc`."""
    utils = folder / "torch" / "utils"
    utils.mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"__version__ = '0'\nclass version:\n    cuda = '{torch_cuda}'\n")
    (utils / "__init__.py").touch()
    (utils / "cpp_extension.py").write_text(STUB_OF_TORCH)
    compiler = folder / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'\n")
    compiler.chmod(0o755)
    return build_says(PYTHONPATH=str(folder), CUDA_HOME=str(folder), **environment)


class TestSetup:
    @pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA, so nothing is missing")
    def test_demanded_and_missing_is_an_error(self) -> None:
        finished = build_says(ICD_KERNELS_CUDA="1")
        assert finished.returncode != 0
        assert "ICD_KERNELS_CUDA=1, but torch" in finished.stderr
        assert "is built without CUDA" in finished.stderr

    def test_refused(self) -> None:
        finished = build_says(ICD_KERNELS_CUDA="0")
        assert finished.returncode == 0, finished.stderr
        assert "CUDA kernels" not in finished.stderr

    @pytest.mark.parametrize(
        ("torch_cuda", "nvcc", "architectures"),
        [("13.0", "13.0", "8.0;9.0;10.0+PTX"), ("13.0", "13.10", "8.0;9.0;10.0+PTX"), ("12.4", "12.4", "8.0;9.0+PTX")],
    )
    def test_architectures(self, tmp_path: Path, torch_cuda: str, nvcc: str, architectures: str) -> None:
        finished = build_with(tmp_path, torch_cuda, nvcc)
        assert finished.returncode == 0, finished.stderr
        assert f"building the CUDA kernels for {architectures}." in finished.stderr

    def test_architectures_by_choice(self, tmp_path: Path) -> None:
        finished = build_with(tmp_path, "13.0", "13.0", TORCH_CUDA_ARCH_LIST="9.0a 12.0")
        assert "building the CUDA kernels for 9.0a 12.0." in finished.stderr

    def test_versions_are_not_compared_as_strings(self, tmp_path: Path) -> None:
        finished = build_with(tmp_path, "13.0", "9.2")
        assert finished.returncode == 0, finished.stderr
        assert "building without the CUDA kernels: nvcc of release 9.2 and torch's CUDA 13.0" in finished.stderr

    def test_no_compiler(self, tmp_path: Path) -> None:
        build_with(tmp_path, "13.0", "13.0")
        (tmp_path / "bin" / "nvcc").unlink()
        finished = build_says(PYTHONPATH=str(tmp_path), CUDA_HOME=str(tmp_path))
        assert "building without the CUDA kernels: there is no nvcc" in finished.stderr


class TestMissing:
    @pytest.mark.skipif(CUDA.missing is None, reason="the CUDA kernels are built")
    def test_asking_for_it_says_how_to_get_it(self) -> None:
        maps, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
        with pytest.raises(BackendUnavailableError, match=r"backend 'cuda' is not available: .*[Bb]uil"):
            icd_loss(maps, weight, maps, weight, backend="cuda")


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA (torch.version.cuda is None)")
class TestCudaBuildOfTorch:
    """The whole extension, linked and imported; run by tools/check_cuda_build.sh in an environment made for it."""

    def test_the_extension_holds_the_kernels(self) -> None:
        assert CUDA.missing is None
        assert built_for()

    def test_operators_have_kernels_and_fakes(self) -> None:
        for schema in SCHEMAS:
            name = f"icd_kernels::{schema.partition('(')[0]}"
            for key in ("CUDA", "CPU", "Meta"):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key), f"{name} on {key}"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_without_a_gpu_it_says_so(self) -> None:
        maps, weight = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
        with pytest.raises(ValueError, match=r"backend 'cuda' runs on \('cuda',\), got tensors on 'cpu'"):
            icd_loss(maps, weight, maps, weight, backend="cuda")
