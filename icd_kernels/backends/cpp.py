"""The compiled CPU backend: loads the extension built from csrc/ and gives its operators their fake kernels."""

from __future__ import annotations

from importlib import import_module

from icd_kernels.backends.base import Backend, operator_backend
from icd_kernels.operators import register_fakes, register_row_fakes

OPERATORS = "icd_kernels"


def _load_extension() -> str | None:
    """Loads the extension. Returns None, or why it could not be loaded and how to get it."""
    try:
        import_module("icd_kernels._C")
    except ImportError as error:
        return (
            f"its compiled extension could not be loaded ({error}). Install a wheel that has it, or build it with a "
            "C++20 compiler: pip install --no-build-isolation --force-reinstall --no-deps . in the source folder"
        )
    register_fakes(OPERATORS)
    register_row_fakes(OPERATORS)
    return None


CPP: Backend = operator_backend("cpp", ("cpu",), _load_extension(), OPERATORS, has_row_losses=True)
