#!/usr/bin/env bash
# The interpreter and ahead-of-time tests with other versions of Triton than the pinned one: the oldest and the newest.
#   tools/check_triton_versions.sh [VERSION ..]      ARGS="-k linear" is passed on to pytest
# Everything but Triton is taken from .venv (make setup), and NumPy: with 2.4 the interpreter of Triton 3.6 fails.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(3.6.0 3.9.0)
python="$PWD/.venv/bin/python"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

for version in "${versions[@]}"; do
  echo "==> Triton $version"
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/$version" \
    "triton==$version" "numpy<2.4"
  export PYTHONPATH="$work/$version:$PWD" TRITON_CACHE_DIR="$work/cache-$version"
  "$python" -c "import triton; assert triton.__version__ == '$version', triton.__version__"
  # shellcheck disable=SC2086 -- ARGS holds several words
  TRITON_INTERPRET=1 "$python" -m pytest -q tests/interpreter ${ARGS:-}
  "$python" -m pytest -q tests/ahead_of_time
done
