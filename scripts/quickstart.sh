#!/usr/bin/env bash
# From a fresh clone to a figure: set-up, data, model, then GRPO and SAW-GDPO in the real pipeline.
#
#   bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]
#
# See --help; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
# exec: killing this process then stops the run
exec "$python" -m saw quickstart "$@"
