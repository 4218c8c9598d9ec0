#!/usr/bin/env bash
# Timings: of the advantage computation beside verl's own, of the rule-based rewards, of the judge's client, of a whole
# training step by each method, or of a start up to the first step.
#
#   bash scripts/benchmark.sh [advantage | rewards | judge | step | start] [OPTIONS]     options: --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
set_up
what=advantage
case ${1:-} in
  advantage | rewards | judge | step | start) what=$1; shift ;;
esac
exec "$python" -m "benchmarks.$what" "$@"
