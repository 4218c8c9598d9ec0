#!/usr/bin/env bash
# Table 1 (tool calling, BFCL v4): data, training, merging, evaluation, table. Finished stages are skipped.
#
#   bash scripts/reproduce_table1.sh --source rlla_rl.json [--model 1.5b] [--method saw_gdpo] [--seeds 1,2,3]
#   bash scripts/reproduce_table1.sh --source rlla_rl.json --dry-run     every command, and what is missing
#   bash scripts/reproduce_table1.sh --rehearse                          end to end on a CPU, toy model, minutes
#
# See --help and recipes/toolrl/README.md; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash "$here/scripts/setup.sh" --bfcl
exec "$SAW_VENV/bin/python" -m recipes.toolrl.reproduce "$@"
