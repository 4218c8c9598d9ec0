#!/usr/bin/env bash
# Tables, figures and an offline page from the logs of trainings.
#
#   bash scripts/report.sh RUN... [--out report] [--baseline grpo] [--threshold format=0.9]
#   bash scripts/report.sh dashboard --project NAME [--entity NAME] [--offline FILE]     a dashboard in wandb
#
# See --help; variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
set_up
if [ "${1:-}" = dashboard ]; then exec "$python" -m saw "$@"; fi
exec "$python" -m saw report "$@"
