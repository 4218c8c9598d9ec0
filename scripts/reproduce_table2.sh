#!/usr/bin/env bash
# Table 2 (summaries, an LLM judge): data, training, merging, evaluation, table. Finished stages are skipped.
#
#   bash scripts/reproduce_table2.sh [--method saw_gdpo] [--seeds 1,2,3]     with GEMINI_API_KEY in the environment
#   bash scripts/reproduce_table2.sh --dry-run     every command, what is missing, what the judge would cost
#   bash scripts/reproduce_table2.sh --rehearse    end to end on a CPU, toy model, stand-in judge, minutes
#
# See --help and recipes/tldr/README.md; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up_unless_dry "" "$@"
exec "$python" -m saw reproduce table2 "$@"
