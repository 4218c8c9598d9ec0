#!/usr/bin/env bash
# Timings: of the advantage computation beside verl's own, of the rule-based rewards, of the judge's client, of a whole
# training step by each method, or of a start up to the first step.
#
#   bash scripts/benchmark.sh [advantage | rewards | judge | step | start] [OPTIONS]     options: --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
what=advantage
case ${1:-} in
  advantage | rewards | judge | step | start) what=$1; shift ;;
esac
exec "${SAW_VENV:-.venv}/bin/python" -m "benchmarks.$what" "$@"
