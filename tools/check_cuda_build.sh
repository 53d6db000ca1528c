#!/usr/bin/env bash
# Links and imports the whole extension, CUDA kernels included, against the CUDA build of torch, in an environment of its
# own that is removed afterwards. Needs nvcc of the same major version as torch's CUDA, 10 GB of disk; no GPU.
#   tools/check_cuda_build.sh [torch version]
set -euo pipefail
cd "$(dirname "$0")/.."
torch="${1:-2.12.1}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

echo "==> The CUDA build of torch $torch (5 GB)"
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "torch==$torch" "setuptools>=77,<82" wheel ninja numpy pytest hypothesis

echo "==> Building a wheel"
ICD_KERNELS_EXTENSION=1 ICD_KERNELS_CUDA=1 "$work/venv/bin/python" -m pip wheel --quiet --no-build-isolation --no-deps \
  --wheel-dir "$work/wheel" .
"$work/venv/bin/python" -m pip install --quiet --no-deps "$work"/wheel/*.whl

echo "==> Importing it and asking for the backend"
# pytest by its own command: `python -m pytest` would import the source folder's package.
"$work/venv/bin/pytest" -q -rs tests/test_cuda_build.py -k "not TestKernels"
