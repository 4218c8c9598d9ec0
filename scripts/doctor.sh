#!/usr/bin/env bash
# Check whether an experiment can start on this machine, and what to do if not. Exit status 0: nothing is missing.
#
#   bash scripts/doctor.sh                                     the machine and the software
#   bash scripts/doctor.sh experiment=toolrl saw.method=gdpo   and what this experiment needs
#   bash scripts/doctor.sh experiment=tldr --no-calls          without calling the Hub, wandb or the judge
#
# The first call makes the environment, and says beforehand how much disk space that takes.
# See --help; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
exec "$python" -m saw doctor "$@"
