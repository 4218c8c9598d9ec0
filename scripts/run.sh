#!/usr/bin/env bash
# Run a command (saw, python, ray, hf, wandb, pytest) in this repository's environment, which need not be active.
#
#   bash scripts/run.sh saw memory --model 3b --gpus 8
#   bash scripts/run.sh hf download Qwen/Qwen2.5-1.5B-Instruct
#
# Variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# = 0 ]; then fail "no command given; for example: bash scripts/run.sh saw memory"; fi
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
PATH=$(dirname "$python"):$PATH
export PATH
exec "$@"
