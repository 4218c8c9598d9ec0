#!/usr/bin/env bash
# Set up and run the tests: linter, type checker, unit and contract tests on two processes, then the real pipeline.
#
#   bash scripts/test.sh [--fast | --full] [PYTEST OPTIONS]
#
# --fast leaves out the pipeline and what takes as long (under 2 minutes once set up); --full adds what is for a release
# or a change of its part: every method, both tables' rehearsals, real rows, a judge that verl serves, all of BFCL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tier=()
case ${1:-} in
  --fast | --full) tier=("$1"); shift ;;
esac
if [ "${tier[*]}" = --fast ]; then bash scripts/setup.sh --dev; else bash scripts/setup.sh --dev --bfcl; fi
venv=${SAW_VENV:-.venv}
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
if [ $# -gt 0 ]; then exec "$venv/bin/python" -m pytest "${tier[@]}" "$@"; fi
"$venv/bin/python" -m pytest "${tier[@]}" -n 2 -m "not e2e"
if [ "${tier[*]}" != --fast ]; then exec "$venv/bin/python" -m pytest "${tier[@]}" tests/e2e; fi
