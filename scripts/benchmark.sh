#!/usr/bin/env bash
# Timings: the advantage computation compared with verl's own, the rule-based rewards, the judge's client, a whole
# training step with each method, or a start up to the first step.
#
#   bash scripts/benchmark.sh [advantage | rewards | judge | step | start] [OPTIONS]     options: --help
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
set_up
if [ "${1:-}" = "" ] || [ "${1#-}" != "$1" ]; then set -- advantage "$@"; fi
exec "$python" -m saw benchmark "$@"
