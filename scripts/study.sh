#!/usr/bin/env bash
# Our studies on two cores (results/README.md): what SAW does, when, and why.
#
#   bash scripts/study.sh tabular [--seeds 300] [--only PART]    a tabular simulation, minutes
#   bash scripts/study.sh lm [--seeds 1,2,3,4,5]                 a small language model in the real pipeline, hours
#   bash scripts/study.sh lean [--seeds 1,2,...,20]              the same model in one process, over an hour
#   bash scripts/study.sh smollm2 [--seeds 1,2,3] [--steps 12]   SmolLM2-135M-Instruct in the real pipeline, hours
#
# See --help; finished trainings are skipped. Variables of the set-up are in scripts/environment.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
export SAW_RUNS="${SAW_RUNS:-$repository/runs}"
set_up
exec "$python" -m saw study "$@"
