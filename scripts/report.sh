#!/usr/bin/env bash
# Tables, figures and a page that opens without a network, from trainings.
#
#   bash scripts/report.sh RUN... [--out report] [--baseline grpo] [--threshold format=0.9]
#   bash scripts/report.sh dashboard --project NAME [--entity NAME] [--offline FILE]     the same in wandb
#
# See --help; options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV
bash "$here/scripts/setup.sh"
module=saw.report
if [ "${1:-}" = dashboard ]; then module=saw.report.dashboard; shift; fi
exec "$SAW_VENV/bin/python" -m "$module" "$@"
