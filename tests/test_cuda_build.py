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
        command = ["nvcc", "-std=c++20", "-Werror", "all-warnings", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
        includes = [f"-I{path}" for path in include_paths()]
        source = str(ROOT / "csrc" / "cuda" / f"{name}.cpp")
        command += ['-DICD_CUDA_BUILD=\\"test\\"', *includes, "-c", source, "-o", str(tmp_path / "object.o")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr


def build_says(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`setup.py --version` decides about CUDA and builds nothing."""
    command = [sys.executable, str(ROOT / "setup.py"), "--version"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICD_KERNELS_")}
    return subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


class TestSetup:
    @pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA, so nothing is missing")
    def test_demanded_and_missing_is_an_error(self, tmp_path: Path) -> None:
        finished = build_says(tmp_path, ICD_KERNELS_CUDA="1")
        assert finished.returncode != 0
        assert "ICD_KERNELS_CUDA=1, but torch" in finished.stderr
        assert "is built without CUDA" in finished.stderr

    def test_refused(self, tmp_path: Path) -> None:
        finished = build_says(tmp_path, ICD_KERNELS_CUDA="0")
        assert finished.returncode == 0, finished.stderr
        assert "CUDA" not in finished.stderr


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
