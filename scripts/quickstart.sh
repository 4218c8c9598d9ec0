#!/usr/bin/env bash
# One command from a fresh clone to a picture: set-up, data, model, GRPO and SAW-GDPO through the real pipeline.
#
#   bash scripts/quickstart.sh [--data FILE.parquet] [--model PATH] [--method NAME ...] [--steps N] [KEY=VALUE ...]
#
# See --help; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$here/scripts/setup.sh"
venv=${SAW_VENV:-$here/.venv}
export SAW_RUNS=${SAW_RUNS:-$here/runs}
# exec: what is killed is the process that stops the run
exec "$venv/bin/python" -m recipes.quickstart.run "$@"
