#!/usr/bin/env bash
# One command from a fresh clone to a picture: set-up, data, model, GRPO and SAW-GDPO through the real pipeline.
#
#   bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]
#
# See --help; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash "$here/scripts/setup.sh"
# exec: the process that a caller kills is the one that stops the run
exec "$SAW_VENV/bin/python" -m recipes.quickstart.run "$@"
