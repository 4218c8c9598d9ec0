#!/usr/bin/env bash
# Table 2 (summaries, an LLM judge): data, training, merging, evaluation, table. Finished stages are skipped.
#
#   bash scripts/reproduce_table2.sh [--method saw_gdpo] [--seeds 1,2,3]     with GEMINI_API_KEY in the environment
#   bash scripts/reproduce_table2.sh --dry-run     every command, what is missing, what the judge would cost
#   bash scripts/reproduce_table2.sh --rehearse    end to end on a CPU, toy model, stand-in judge, minutes
#
# See --help and recipes/tldr/README.md; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash "$here/scripts/setup.sh"
exec "$SAW_VENV/bin/python" -m recipes.tldr.reproduce "$@"
