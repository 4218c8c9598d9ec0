#!/usr/bin/env bash
# Table 1 (tool calling, BFCL v4): data, training, merging, evaluation, table. Finished stages are skipped.
#
#   bash scripts/reproduce_table1.sh --source rlla_rl.json [--model 1.5b] [--method saw_gdpo] [--seeds 1,2,3]
#   bash scripts/reproduce_table1.sh --source rlla_rl.json --dry-run     every command, and what is missing
#   bash scripts/reproduce_table1.sh --rehearse                          end to end on a CPU, toy model, minutes
#
# See --help and recipes/toolrl/README.md; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up_unless_dry "" "$@"
"$python" -m saw reproduce table1 --check-arguments "$@" # before BFCL's environment is made
set_up_unless_dry --bfcl "$@"
exec "$python" -m saw reproduce table1 "$@"
