#!/usr/bin/env bash
# Set up and run the tests.
#
#   bash scripts/test.sh [--fast | --full] [PYTEST OPTIONS]
#
# The linter, the type checker, unit and contract tests run beside the real pipeline, and are shown after it.
# --fast leaves out the pipeline and what takes as long (under 2 minutes once set up). --full adds what is for a release
# or a change of its part: every method, both tables' rehearsals, real rows, a judge that verl serves, all of BFCL.
# With options for pytest, pytest alone is run: bash scripts/test.sh tests/unit/test_report.py -k page
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tier=()
case ${1:-} in
  --fast | --full) tier=("$1"); shift ;;
esac
if [ "${tier[*]}" = --fast ]; then bash scripts/setup.sh --dev; else bash scripts/setup.sh --dev --bfcl; fi
python=${SAW_VENV:-.venv}/bin/python
if [ $# -gt 0 ]; then exec "$python" -m pytest "${tier[@]}" "$@"; fi

without_pipeline() {  # $1: processes
  "$python" -m ruff check . && "$python" -m ruff format --check . && "$python" -m mypy &&
    "$python" -m pytest "${tier[@]}" -n "$1" -m "not e2e"
}
if [ "${tier[*]}" = --fast ]; then without_pipeline 2; exit; fi
log=$(mktemp)
set -m  # a process group of its own, which an interruption can end
without_pipeline 1 > "$log" 2>&1 &
others=$!
trap 'kill -- -$others 2> /dev/null; rm -f "$log"' EXIT
failed=false
"$python" -m pytest "${tier[@]}" tests/e2e || failed=true
wait $others || failed=true
cat "$log"
if $failed; then echo "test.sh: something failed, see above" >&2; exit 1; fi
