#!/usr/bin/env bash
# Timings: of the advantage computation beside verl's own, of the rule-based rewards, or of the judge's client.
#
#   bash scripts/benchmark.sh [advantage | rewards | judge] [OPTIONS]     options: --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
what=advantage
case ${1:-} in
  advantage | rewards | judge) what=$1; shift ;;
esac
exec "${SAW_VENV:-.venv}/bin/python" -m "benchmarks.$what" "$@"
