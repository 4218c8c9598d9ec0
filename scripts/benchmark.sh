#!/usr/bin/env bash
# Time the advantage computation beside verl's own estimators and one plain multiply; options: benchmarks/advantage.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec "${SAW_VENV:-.venv}/bin/python" -m benchmarks.advantage "$@"
