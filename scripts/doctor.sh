#!/usr/bin/env bash
# Whether an experiment can start on this machine, and what to do if not: one table. Exit status 0: nothing is missing.
#
#   bash scripts/doctor.sh                                      the machine and the software
#   bash scripts/doctor.sh experiment=toolrl/1.5b_saw_gdpo      and what this experiment needs
#   bash scripts/doctor.sh experiment=tldr/saw_gdpo --no-calls  asking neither the Hub, wandb nor the judge
#
# See --help; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash "$here/scripts/setup.sh"
exec "$SAW_VENV/bin/python" -m saw.doctor "$@"
