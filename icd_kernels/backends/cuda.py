"""The CUDA backend: the extension's operators on CUDA tensors, where the extension was built with its CUDA kernels."""

from __future__ import annotations

import torch

from icd_kernels.backends.base import Backend, operator_backend
from icd_kernels.backends.cpp import CPP, OPERATORS


def built_for() -> str | None:
    """The architectures the CUDA kernels were built for, such as "8.0,9.0,10.0+PTX"; None without them."""
    if CPP.missing is not None:
        return None
    operator = getattr(torch.ops, OPERATORS)
    return operator.cuda_compiled() if hasattr(operator, "cuda_compiled") else None


def _missing() -> str | None:
    """None, or what is missing and how to get it."""
    if CPP.missing is not None:
        return CPP.missing
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a CUDA build of it, then build this package"
    if built_for() is None:
        return (
            f"the compiled extension was built without its CUDA kernels. Build it with the nvcc of CUDA "
            f"{torch.version.cuda.split('.')[0]}, which torch is built with: ICD_KERNELS_CUDA=1 pip install "
            "--no-build-isolation --force-reinstall --no-deps . in the source folder"
        )
    return None


CUDA: Backend = operator_backend("cuda", ("cuda",), _missing(), OPERATORS)
