#!/usr/bin/env bash
# Train an experiment with several methods and seeds, one after another. Finished trainings are skipped.
#
#   bash scripts/sweep.sh --experiment quickstart --method saw_gdpo --method gdpo --seeds 1,2,3 [KEY=VALUE ...]
#
# See --help and recipes/ablations/README.md; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up_unless_dry "" "$@"
exec "$python" -m saw sweep "$@"
