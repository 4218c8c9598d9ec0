#!/usr/bin/env bash
# Train an experiment with several methods and seeds, one after the other. Finished trainings are skipped.
#
#   bash scripts/sweep.sh --experiment quickstart --method saw_gdpo --method gdpo --seeds 1,2,3 [KEY=VALUE ...]
#
# See --help and recipes/ablations/README.md; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash "$here/scripts/setup.sh"
exec "$SAW_VENV/bin/python" -m recipes.ablations.sweep "$@"
