#!/usr/bin/env bash
# Set up and run the tests: linter, type checker, then unit tests, contract tests and the real pipeline on two processes.
#
#   bash scripts/test.sh [--fast | --full] [PYTEST OPTIONS]
#
# --fast leaves out the pipeline and other slow tests (about 2 minutes once set up). --full adds tests of parts that rarely
# break, for a release or a change of such a part: all methods, the rehearsals of both tables, long prompts, a judge that
# verl serves, all of BFCL.
# With options for pytest, only pytest is run: bash scripts/test.sh tests/unit/report/test_report.py -k page
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
tier=()
case ${1:-} in
  --fast | --full) tier=("$1"); shift ;;
esac
if [ "${tier[*]}" = --fast ]; then set_up --dev; else set_up --dev --bfcl; fi
if [ $# -gt 0 ]; then exec "$python" -m pytest "${tier[@]}" "$@"; fi

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# One of the two processes runs the trainings, which leave half of the machine idle. See tests/conftest.py.
"$python" -m pytest "${tier[@]}" -n 2 --dist loadfile --no-loadscope-reorder
if [ "${tier[*]}" = --full ]; then bash scripts/verl_versions.sh --slow; fi
if [ ${#tier[@]} = 0 ]; then bash scripts/verl_versions.sh; fi
