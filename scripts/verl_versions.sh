#!/usr/bin/env bash
# Run the contract tests with other versions of verl, each in its own folder; the environment is not changed.
#
#   bash scripts/verl_versions.sh [--slow] [VERSION...]      default: those of saw/verl/version.py but the installed one
#   bash scripts/verl_versions.sh [--slow] latest            the newest release: has verl changed what we rely on?
#
# --slow adds all tests that start verl's workers and Ray; for nightly runs. Without it, about 45 CPU seconds a version.
# Only verl changes: everything else (torch, vLLM, TransferQueue) is the environment's.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$repository"
set_up --dev
tests="contract and (seam or not slow)"
if [ "${1:-}" = --slow ]; then tests=contract; shift; fi
versions=("$@")
found_version() { "$python" -c 'from importlib.metadata import version; print(version("verl"))'; }
if [ $# = 0 ]; then
  installed=$(found_version)
  read -ra known <<< "$(sed -nE 's/^VERSIONS = \((.*)\)$/\1/p' saw/verl/version.py | tr -d '",')"
  for version in "${known[@]}"; do
    if [ "$version" != "$installed" ]; then versions+=("$version"); fi
  done
fi

failed=()
for version in "${versions[@]}"; do
  folder=$repository/.cache/verl/$version
  if [ "$version" = latest ]; then rm -rf "$folder"; fi
  if [ ! -d "$folder/verl" ]; then
    wanted=verl
    if [ "$version" != latest ]; then wanted=verl==$version; fi
    rm -rf "$folder" "$folder.part"
    "$python" -m pip install --quiet --no-deps --target "$folder.part" "$wanted"
    mv "$folder.part" "$folder" # complete, or not there
  fi
  # After the repository: old wheels of verl contain a package named tests.
  export PYTHONPATH=$repository:$folder SAW_ANY_VERL=1
  found=$(found_version)
  echo "verl $found:"
  "$python" -m pytest -q --tb=line --durations-min=60 -m "$tests" tests/contract || failed+=("$found")
done
if [ ${#failed[@]} != 0 ]; then
  echo "verl ${failed[*]} has changed something that the plug-in relies on: see the tests that failed above" >&2
  exit 1
fi
