#!/usr/bin/env bash
# Whether an experiment can start on this machine, and what to do if not: one table. Exit status 0: nothing is missing.
#
#   bash scripts/doctor.sh                                     the machine and the software
#   bash scripts/doctor.sh experiment=toolrl saw.method=gdpo   and what this experiment needs
#   bash scripts/doctor.sh experiment=tldr --no-calls          without calling the Hub, wandb or the judge
#
# The first call sets the environment up, and says beforehand what that takes.
# See --help; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
exec "$python" -m saw doctor "$@"
