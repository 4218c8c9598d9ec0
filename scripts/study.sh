#!/usr/bin/env bash
# The study that fits on two cores (results/README.md): what SAW does, when, and why.
#
#   bash scripts/study.sh tabular [--seeds 300] [--only PART]    a tabular world, minutes
#   bash scripts/study.sh lm [--seeds 1,2,3,4,5]                 a small language model in the real pipeline, hours
#
# See --help; what is finished is not trained again. Options of the set-up are environment variables, see scripts/setup.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  tabular) module=recipes.study.tabular_study ;;
  lm) module=recipes.study.lm ;;
  *) echo "study.sh: the first argument is '${1:-}'; expected tabular or lm" >&2; exit 2 ;;
esac
shift
cd "$here"
SAW_VENV=$(realpath -m "${SAW_VENV:-$here/.venv}")
export SAW_VENV SAW_RUNS="${SAW_RUNS:-$here/runs}"
bash scripts/setup.sh
exec "$SAW_VENV/bin/python" -m "$module" "$@"
