#!/usr/bin/env bash
# Timings: of the advantage computation beside verl's own, of the rule-based rewards, of the judge's client, of a whole
# training step by each method, or of a start up to the first step.
#
#   bash scripts/benchmark.sh [advantage | rewards | judge | step | start] [OPTIONS]     options: --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
set_up
if [ "${1:-}" = "" ] || [ "${1#-}" != "$1" ]; then set -- advantage "$@"; fi
exec "$python" -m saw benchmark "$@"
