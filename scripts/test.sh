#!/usr/bin/env bash
# Set up and run the whole suite: linter, type checker, tests.
#
#   bash scripts/test.sh [PYTEST OPTIONS]     for example: -m unit, -m "not e2e"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh --dev --bfcl
venv=${SAW_VENV:-.venv}
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
exec "$venv/bin/python" -m pytest "$@"
