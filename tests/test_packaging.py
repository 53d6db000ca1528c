"""What is built from the source folder: the source archive, and a wheel whose name says what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_setup(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py on a copy of nothing: all it writes goes where the arguments say."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ICD_KERNELS_")}
    return subprocess.run(
        [sys.executable, str(ROOT / "setup.py"), "-q", *map(str, arguments)],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def wheel_of(folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel that is built, and what was said."""
    build = ("egg_info", "--egg-base", folder, "build", "--build-base", folder / "build")
    wheel = ("bdist_wheel", "--dist-dir", folder / "dist", "--bdist-dir", folder / "files")
    finished = run_setup(*build, *wheel, **environment)
    assert finished.returncode == 0, finished.stderr
    (built,) = (folder / "dist").iterdir()
    return built, finished.stderr


class TestWheel:
    @pytest.mark.parametrize(
        ("environment", "said"),
        [
            ({"ICD_KERNELS_EXTENSION": "0"}, ""),
            ({"CXX": "false", "CC": "false"}, "the extension could not be built"),
        ],
    )
    def test_without_the_extension_is_for_every_platform(
        self, tmp_path: Path, environment: dict[str, str], said: str
    ) -> None:
        wheel, errors = wheel_of(tmp_path, **environment)
        assert said in errors
        assert wheel.name.endswith("-py3-none-any.whl")
        names = zipfile.ZipFile(wheel).namelist()
        assert not [name for name in names if name.endswith(".so")]
        assert "icd_kernels/py.typed" in names


def test_sdist_has_what_the_extension_is_built_from(tmp_path: Path) -> None:
    finished = run_setup("egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path / "dist")
    assert finished.returncode == 0, finished.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as opened:
        packed = {name.split("/", 1)[-1] for name in opened.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= packed
    assert {"setup.py", "pyproject.toml", "icd_kernels/py.typed", "LICENSE"} <= packed


def test_old_setuptools_is_named(tmp_path: Path) -> None:
    (tmp_path / "setuptools.py").write_text(
        "__version__ = '65.5.1'\nCommand = Distribution = Extension = setup = None\n"
    )
    finished = run_setup("--version", PYTHONPATH=str(tmp_path))
    assert finished.returncode == 1
    assert "building needs setuptools 77.0.3 or newer, found 65.5.1: pip install" in finished.stderr
