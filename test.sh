#!/usr/bin/env bash
# Everything a contributor or CI checks: lint, types, import layers, tests. Extra words go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/install.sh
install_lorabel "minilm,dev"

bin=$VENV/bin
echo "== lint"
"$bin/ruff" check src tests benchmarks
"$bin/ruff" format --check --quiet src tests benchmarks
echo "== types"
"$bin/mypy"
echo "== import layers"
"$bin/lint-imports"
echo "== tests"
# One process per core; a test uses one thread. `-n 0` runs them in this process, for a debugger.
"$bin/pytest" -n auto --dist worksteal "$@"
