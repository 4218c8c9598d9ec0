#!/usr/bin/env bash
# One command from a fresh clone to a picture: set-up, data, model, GRPO and SAW-GDPO through the real pipeline.
#
#   bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]
#   bash scripts/quickstart.sh --model smollm2     # with SmolLM2-135M-Instruct, which is downloaded
#
# See --help; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
# exec: killing this process then stops the run
exec "$python" -m saw quickstart "$@"
