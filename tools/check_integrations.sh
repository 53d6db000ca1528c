#!/usr/bin/env bash
# The examples with the real libraries, in an environment of their own, and the installed package without its sources.
#   tools/check_integrations.sh [FOLDER]      FOLDER (default: build/integrations) is made once, and kept
# TORCH and TORCHVISION choose versions, PYTHON the interpreter; ARGS="-k timm" is passed on to pytest. MDISTILLER is a clone
# of mdistiller, which is in no package index; without it that example runs against a stand-in (tests/support).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "${1:-build/integrations}"
folder="$(cd "${1:-build/integrations}" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="$folder/bin/python"

[ -x "$python" ] || "${PYTHON:-python3}" -m venv "$folder"
echo "==> Installing the libraries (the first time, some gigabytes)"
"$python" -m pip install --quiet --disable-pip-version-check \
  "torch==${TORCH:-2.14.1}" "torchvision==${TORCHVISION:-0.29.1}" timm transformers peft safetensors lightning \
  accelerate torchdistill yacs \
  pytest hypothesis numpy setuptools wheel ninja

echo "==> Building and installing the package from the committed sources"
git archive HEAD | tar x -C "$work"
ICD_KERNELS_EXTENSION=1 ICD_KERNELS_CUDA=0 "$python" -m pip install --quiet --disable-pip-version-check \
  --no-build-isolation --no-deps --force-reinstall "$work"

echo "==> Running the examples"
"$python" -m pip list --disable-pip-version-check 2>/dev/null \
  | grep -E '^(torch|torchvision|timm|transformers|peft|lightning|accelerate|torchdistill|yacs|icd_kernels) '
cd "$work"
# pytest and not python -m pytest: the package has to be the installed one, not the sources in this folder
# shellcheck disable=SC2086 -- ARGS holds several words
PYTHONPATH="${MDISTILLER:-}" OMP_NUM_THREADS=1 "$folder/bin/pytest" -q -p no:cacheprovider tests/integrations ${ARGS:-}
